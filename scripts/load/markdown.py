"""Formatting of the Markdown reports."""


def format_time(seconds):
    """Returns a time with a suitable unit, or "-" for None."""
    if seconds is None:
        return "-"
    if seconds < 0.0009995:
        return "%.0f us" % (seconds * 1e6)
    return "%.3g ms" % (seconds * 1e3) if seconds < 1 else "%.2f s" % seconds


def format_table(head, rows, words=1):
    """Returns the lines of a table. The first `words` columns hold words, the others numbers."""
    lines = ["| " + " | ".join(head) + " |", "|---" * words + "|---:" * (len(head) - words) + "|"]
    lines.extend("| " + " | ".join(row) + " |" for row in rows)
    return lines
