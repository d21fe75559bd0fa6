"""Draws the CPU time for each key as SVG: one panel of bars for each case.

The image has its own background, so that it reads the same on light and dark pages.
"""

import cases
import goals
from plot import BLUE, FAINT, PAPER, WIDTH, draw_text, format_number

COLUMNS, MARGIN, TOP, BOTTOM = 2, 20, 44, 20
LABELS, VALUES, GAP = 142, 62, 34
# Cases with random keys that have a panel. The other panels would differ little from these.
RANDOM = ("half-16", "resp-1", "resp-16", "mget-100", "2m-1", "2m-16", "2m-mget-100", "10m-16", "10m-mget-100")
# Height of a bar, and distance from one bar to the next.
BAR, STEP = 14, 20
HEAD = 30


def format_name(name):
    """Returns the name of a server without Markdown."""
    return cases.NAMES[name].replace("`", "")


def draw_panel(left, top, title, bars, width):
    """Returns the elements of one panel. `bars` holds names and microseconds."""
    parts = [draw_text(left, top + 12, title, weight="bold")]
    longest = max([value for _, value in bars] + [1e-9])
    start, max_width = left + LABELS, width - LABELS - VALUES
    for index, (name, value) in enumerate(bars):
        y, is_proxy = top + HEAD + index * STEP, name == "proxy"
        colour, weight = (BLUE, "bold") if is_proxy else (FAINT, "normal")
        bar_width = value / longest * max_width
        parts.append(draw_text(start - 8, y + BAR - 3, format_name(name), "end", colour, 11, weight))
        parts.append('<rect x="%d" y="%d" width="%.1f" height="%d" rx="2" fill="%s" fill-opacity="%s"/>' % (
            start, y, max(1, bar_width), BAR, colour, 1 if is_proxy else 0.4))
        label = format_number(float("%.3g" % value))
        parts.append(draw_text(start + bar_width + 6, y + BAR - 3, label, colour=FAINT, size=11))
    return parts


def draw_svg(measured):
    """Returns the whole image. `measured` holds the rounds of each server, by case."""
    chosen = [case for case in cases.CASES if case.name in measured and (not case.keys or case.name in RANDOM)]
    width = (WIDTH - 2 * MARGIN - (COLUMNS - 1) * GAP) / COLUMNS
    parts, top = [], TOP + 8
    for start in range(0, len(chosen), COLUMNS):
        row = chosen[start:start + COLUMNS]
        for column, case in enumerate(row):
            bars = [(name, goals.compute_median(rounds, goals.compute_cpu_us))
                    for name, rounds in measured[case.name].items()]
            parts.extend(draw_panel(MARGIN + column * (width + GAP), top, cases.describe(case), bars, width))
        top += HEAD + max(len(measured[case.name]) for case in row) * STEP + 24
    height = top - 24 + BOTTOM
    title = "CPU time for each key in microseconds (less is better)"
    return "\n".join(
        ['<svg xmlns="http://www.w3.org/2000/svg" width="%d" height="%d" viewBox="0 0 %d %d" '
         'font-family="system-ui, sans-serif" role="img" aria-label="%s">' % (WIDTH, height, WIDTH, height, title),
         '<rect width="100%%" height="100%%" rx="6" fill="%s"/>' % PAPER,
         draw_text(MARGIN, 28, title, size=14, weight="bold")]
        + parts + ["</svg>"]) + "\n"
