"""Draws what a request costs: bars of processor time, one panel for each case, as SVG with its own background, so that it reads the
same in light and dark surroundings."""

import cases
import goals
from plot import BLUE, FAINT, PAPER, WIDTH, number, text

COLUMNS, MARGIN, TOP, BOTTOM = 2, 20, 44, 20
LABELS, VALUES, GAP = 142, 62, 34
# Of a bar, and from one to the next.
BAR, STEP = 14, 20
HEAD = 30


def short(name):
    """Without what Markdown needs."""
    return cases.NAMES[name].replace("`", "")


def panel(left, top, title, bars, width):
    """`bars` are name and microseconds; the proxy's is the one to look at."""
    parts = [text(left, top + 12, title, weight="bold")]
    longest = max([value for _, value in bars] + [1e-9])
    start, room = left + LABELS, width - LABELS - VALUES
    for place, (name, value) in enumerate(bars):
        y, ours = top + HEAD + place * STEP, name == "proxy"
        parts.append(text(start - 8, y + BAR - 3, short(name), "end", BLUE if ours else FAINT, 11, "bold" if ours else "normal"))
        parts.append('<rect x="%d" y="%d" width="%.1f" height="%d" rx="2" fill="%s" fill-opacity="%s"/>' % (
            start, y, max(1, value / longest * room), BAR, BLUE if ours else FAINT, 1 if ours else 0.4))
        parts.append(text(start + value / longest * room + 6, y + BAR - 3, number(float("%.3g" % value)), colour=FAINT, size=11))
    return parts


def svg(measured):
    """`measured` are the rounds of each server, by case."""
    chosen = [case for case in cases.CASES if case.name in measured]
    width = (WIDTH - 2 * MARGIN - (COLUMNS - 1) * GAP) / COLUMNS
    parts, top = [], TOP + 8
    for start in range(0, len(chosen), COLUMNS):
        row = chosen[start:start + COLUMNS]
        for place, case in enumerate(row):
            bars = [(name, goals.median(rounds, goals.cpu)) for name, rounds in measured[case.name].items()]
            parts.extend(panel(MARGIN + place * (width + GAP), top, case.title, bars, width))
        top += HEAD + max(len(measured[case.name]) for case in row) * STEP + 24
    height = top - 24 + BOTTOM
    title = "Processor time for each request, in microseconds; less is better"
    return "\n".join(
        ['<svg xmlns="http://www.w3.org/2000/svg" width="%d" height="%d" viewBox="0 0 %d %d" font-family="system-ui, sans-serif" role="img" '
         'aria-label="%s">' % (WIDTH, height, WIDTH, height, title),
         '<rect width="100%%" height="100%%" rx="6" fill="%s"/>' % PAPER, text(MARGIN, 28, title, size=14, weight="bold")]
        + parts + ["</svg>"]) + "\n"
