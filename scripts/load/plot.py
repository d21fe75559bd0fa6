"""Draws what was sampled: small panels over one axis of time, as SVG with its own background, so that it reads the same
in light and dark surroundings."""

import math

WIDTH, LEFT, RIGHT, TOP = 900, 90, 20, 44
PANEL, GAP, BOTTOM = 110, 34, 44
# Points of a line: more than that would not be seen.
POINTS = 400
INK, FAINT, GRID, PAPER = "#1f2933", "#616e7c", "#e1e6eb", "#ffffff"
BLUE, ORANGE = "#0b6bcb", "#c2570c"

# Title, unit behind the numbers, lines (label, field, colour), factor, whether the axis is logarithmic.
PANELS = [
    ("requests per second", "", [("", "requests_per_second", BLUE)], 1, False),
    ("hit ratio", " %", [("", "hit_ratio", BLUE)], 100, False),
    ("resident memory", " MiB", [("", "memory", BLUE)], 1 / 2 ** 20, False),
    ("open descriptors", "", [("", "descriptors", BLUE)], 1, False),
    ("p99 by /metrics", " ms", [("hits", "hit_p99", BLUE), ("misses", "miss_p99", ORANGE)], 1000, True),
]


def thinned(points):
    """No more points than can be seen: of neighbours the highest and the lowest, so that no peak is lost."""
    if len(points) <= POINTS:
        return points
    size = math.ceil(len(points) / (POINTS / 2))
    result = []
    for start in range(0, len(points), size):
        group = points[start:start + size]
        result.extend(sorted({min(group, key=lambda point: point[1]), max(group, key=lambda point: point[1])}))
    return result


def step(span, count):
    """A round distance between marks, so that about `count` fit."""
    raw = span / count
    power = 10 ** math.floor(math.log10(raw))
    return next(power * factor for factor in (1, 2, 5, 10) if power * factor >= raw * 0.999)


def marks(low, high, logarithmic):
    """Where the marks of an axis are; the first and the last are its ends."""
    if logarithmic:
        first, last = math.floor(math.log10(low)), math.ceil(math.log10(high))
        return [10.0 ** power for power in range(first, max(last, first + 1) + 1)]
    distance = step(high - low or high or 1, 3)
    first = math.floor(low / distance)
    count = max(1, math.ceil(high / distance - 1e-9) - first)
    return [(first + number) * distance for number in range(count + 1)]


def number(value):
    if value >= 10_000:
        return "%gk" % (value / 1000)
    return "%g" % round(value, 6)


def text(x, y, content, anchor="start", colour=INK, size=12, weight="normal"):
    return '<text x="%.1f" y="%.1f" text-anchor="%s" fill="%s" font-size="%d" font-weight="%s">%s</text>' % (
        x, y, anchor, colour, size, weight, content)


def panel(top, title, unit, lines, logarithmic, across):
    """One panel; `lines` are label, colour and points, `across` makes seconds to a place."""
    parts = [text(LEFT, top - 8, title, weight="bold")]
    heights = [value for _, _, points in lines for _, value in points if value > 0 or not logarithmic]
    if not heights:
        return parts + [text(LEFT, top + PANEL / 2, "nothing was seen", colour=FAINT)]
    at = marks(min(heights) if logarithmic else 0, max(heights), logarithmic)
    scale = math.log10 if logarithmic else float
    low, high = scale(at[0]), scale(at[-1])

    def up(value):
        return top + PANEL - (scale(max(value, at[0])) - low) / (high - low) * PANEL

    for mark in at:
        parts.append('<line x1="%d" x2="%d" y1="%.1f" y2="%.1f" stroke="%s"/>' % (LEFT, WIDTH - RIGHT, up(mark), up(mark), GRID))
        parts.append(text(LEFT - 8, up(mark) + 4, number(mark) + unit, "end", FAINT, 11))
    for place, (label, colour, points) in enumerate(lines):
        path = " ".join("%.1f,%.1f" % (across(second), up(value)) for second, value in thinned(points))
        parts.append('<polyline points="%s" fill="none" stroke="%s" stroke-width="1.5" stroke-linejoin="round"/>' % (path, colour))
        if label:
            parts.append(text(WIDTH - RIGHT - 70 * (len(lines) - 1 - place), top - 8, label, "end", colour, weight="bold"))
    return parts


def svg(samples):
    longest = max([sample["at"] for sample in samples] or [1])
    minutes = longest > 180
    height = TOP + len(PANELS) * (PANEL + GAP) - GAP + BOTTOM

    def across(second):
        return LEFT + second / longest * (WIDTH - LEFT - RIGHT)

    parts = ['<svg xmlns="http://www.w3.org/2000/svg" width="%d" height="%d" viewBox="0 0 %d %d" '
             'font-family="system-ui, sans-serif" role="img" aria-label="The proxy under load, over time">'
             % (WIDTH, height, WIDTH, height),
             '<rect width="100%%" height="100%%" rx="6" fill="%s"/>' % PAPER]
    top = TOP
    for title, unit, lines, factor, logarithmic in PANELS:
        drawn = [(label, colour, [(sample["at"], sample[field] * factor) for sample in samples if sample[field] is not None])
                 for label, field, colour in lines]
        parts.extend(panel(top, title, unit, drawn, logarithmic, across))
        top += PANEL + GAP
    bottom = top - GAP
    unit = 60 if minutes else 1
    distance = step(longest / unit, 8)
    for place in range(int(longest / unit / distance) + 1):
        parts.append(text(across(place * distance * unit), bottom + 16, number(place * distance), "middle", FAINT, 11))
    parts.append(text((LEFT + WIDTH - RIGHT) / 2, bottom + 34, "minutes" if minutes else "seconds", "middle", FAINT))
    return "\n".join(parts + ["</svg>"]) + "\n"
