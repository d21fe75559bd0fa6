"""Draws the samples of a run as SVG: small panels above one time axis.

The image has its own background, so that it reads the same on light and dark pages.
"""

import math

WIDTH, LEFT, RIGHT, TOP = 900, 90, 20, 44
PANEL, GAP, BOTTOM = 110, 34, 44
# Maximum of points in a line: more cannot be seen.
MAX_POINTS = 400
INK, FAINT, GRID, PAPER = "#1f2933", "#616e7c", "#e1e6eb", "#ffffff"
BLUE, ORANGE = "#0b6bcb", "#c2570c"

# Title, unit of the numbers, lines (label, field, colour), factor, true if the axis is logarithmic.
PANELS = [
    ("requests per second", "", [("", "requests_per_second", BLUE)], 1, False),
    ("hit ratio", " %", [("", "hit_ratio", BLUE)], 100, False),
    ("resident memory", " MiB", [("", "memory", BLUE)], 1 / 2 ** 20, False),
    ("open descriptors", "", [("", "descriptors", BLUE)], 1, False),
    ("p99 by /metrics", " ms", [("hits", "hit_p99", BLUE), ("misses", "miss_p99", ORANGE)], 1000, True),
]


def thin_points(points):
    """Returns at most MAX_POINTS: the lowest and highest of each group, so that peaks remain."""
    if len(points) <= MAX_POINTS:
        return points
    size = math.ceil(len(points) / (MAX_POINTS / 2))
    result = []
    for start in range(0, len(points), size):
        group = points[start:start + size]
        result.extend(sorted({min(group, key=lambda point: point[1]), max(group, key=lambda point: point[1])}))
    return result


def choose_step(span, count):
    """Returns a round distance between ticks, so that about `count` of them fit."""
    raw = span / count
    power = 10 ** math.floor(math.log10(raw))
    return next(power * factor for factor in (1, 2, 5, 10) if power * factor >= raw * 0.999)


def choose_ticks(low, high, logarithmic):
    """Returns the ticks of an axis. The first and the last are its ends."""
    if logarithmic:
        first, last = math.floor(math.log10(low)), math.ceil(math.log10(high))
        return [10.0 ** power for power in range(first, max(last, first + 1) + 1)]
    distance = choose_step(high - low or high or 1, 3)
    first = math.floor(low / distance)
    count = max(1, math.ceil(high / distance - 1e-9) - first)
    return [(first + number) * distance for number in range(count + 1)]


def format_number(value):
    """Returns a short form of a number."""
    if value >= 10_000:
        return "%gk" % (value / 1000)
    return "%g" % round(value, 6)


def draw_text(x, y, content, anchor="start", colour=INK, size=12, weight="normal"):
    """Returns a text element."""
    return '<text x="%.1f" y="%.1f" text-anchor="%s" fill="%s" font-size="%d" font-weight="%s">%s</text>' % (
        x, y, anchor, colour, size, weight, content)


def draw_panel(top, title, unit, lines, logarithmic, to_x):
    """Returns the elements of one panel.

    `lines` holds label, colour and points of each line; `to_x` converts seconds to a coordinate.
    """
    parts = [draw_text(LEFT, top - 8, title, weight="bold")]
    heights = [value for _, _, points in lines for _, value in points if value > 0 or not logarithmic]
    if not heights:
        return parts + [draw_text(LEFT, top + PANEL / 2, "no data", colour=FAINT)]
    ticks = choose_ticks(min(heights) if logarithmic else 0, max(heights), logarithmic)
    scale = math.log10 if logarithmic else float
    low, high = scale(ticks[0]), scale(ticks[-1])

    def to_y(value):
        return top + PANEL - (scale(max(value, ticks[0])) - low) / (high - low) * PANEL

    for tick in ticks:
        y = to_y(tick)
        parts.append('<line x1="%d" x2="%d" y1="%.1f" y2="%.1f" stroke="%s"/>' % (LEFT, WIDTH - RIGHT, y, y, GRID))
        parts.append(draw_text(LEFT - 8, y + 4, format_number(tick) + unit, "end", FAINT, 11))
    for index, (label, colour, points) in enumerate(lines):
        path = " ".join("%.1f,%.1f" % (to_x(second), to_y(value)) for second, value in thin_points(points))
        parts.append('<polyline points="%s" fill="none" stroke="%s" stroke-width="1.5" stroke-linejoin="round"/>'
                     % (path, colour))
        if label:
            x = WIDTH - RIGHT - 70 * (len(lines) - 1 - index)
            parts.append(draw_text(x, top - 8, label, "end", colour, weight="bold"))
    return parts


def draw_svg(samples):
    """Returns the whole image."""
    longest = max([sample["at"] for sample in samples] or [1])
    minutes = longest > 180
    height = TOP + len(PANELS) * (PANEL + GAP) - GAP + BOTTOM

    def to_x(second):
        return LEFT + second / longest * (WIDTH - LEFT - RIGHT)

    parts = ['<svg xmlns="http://www.w3.org/2000/svg" width="%d" height="%d" viewBox="0 0 %d %d" '
             'font-family="system-ui, sans-serif" role="img" aria-label="The proxy under load, over time">'
             % (WIDTH, height, WIDTH, height),
             '<rect width="100%%" height="100%%" rx="6" fill="%s"/>' % PAPER]
    top = TOP
    for title, unit, lines, factor, logarithmic in PANELS:
        drawn = []
        for label, field, colour in lines:
            known = [sample for sample in samples if sample[field] is not None]
            drawn.append((label, colour, [(sample["at"], sample[field] * factor) for sample in known]))
        parts.extend(draw_panel(top, title, unit, drawn, logarithmic, to_x))
        top += PANEL + GAP
    bottom = top - GAP
    unit = 60 if minutes else 1
    distance = choose_step(longest / unit, 8)
    for index in range(int(longest / unit / distance) + 1):
        label = format_number(index * distance)
        parts.append(draw_text(to_x(index * distance * unit), bottom + 16, label, "middle", FAINT, 11))
    label = "minutes" if minutes else "seconds"
    parts.append(draw_text((LEFT + WIDTH - RIGHT) / 2, bottom + 34, label, "middle", FAINT))
    return "\n".join(parts + ["</svg>"]) + "\n"
