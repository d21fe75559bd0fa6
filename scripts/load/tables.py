"""What reports are made of."""


def time_text(seconds):
    if seconds is None:
        return "-"
    if seconds < 0.0009995:
        return "%.0f us" % (seconds * 1e6)
    return "%.3g ms" % (seconds * 1e3) if seconds < 1 else "%.2f s" % seconds


def table(head, rows, words=1):
    """The first columns hold words, the others numbers."""
    lines = ["| " + " | ".join(head) + " |", "|---" * words + "|---:" * (len(head) - words) + "|"]
    lines.extend("| " + " | ".join(row) + " |" for row in rows)
    return lines
