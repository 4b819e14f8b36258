"""Draws the two pictures of the bench as SVG: bars for a comparison, and a line for a measure over time.

The functions are pure: they turn figures into text. The pictures suit light pages and narrow columns.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from xml.sax.saxutils import escape

INK, PALE, RULE = "#1f2933", "#6b7785", "#d9dee4"
OURS, THEIRS = "#e4572e", "#a9b8c9"
FONT = "font-family='-apple-system, Segoe UI, Helvetica, Arial, sans-serif'"


@dataclass(frozen=True, slots=True)
class Bar:
    label: str
    value: float
    ratio: float | None
    """against the yardstick; None for the yardstick itself"""
    digits: int
    ours: bool


@dataclass(frozen=True, slots=True)
class Panel:
    title: str
    unit: str
    more_is_better: bool
    bars: list[Bar]


def text(x: float, y: float, words: str, size: int = 12, colour: str = INK, anchor: str = "start", bold: bool = False) -> str:
    weight = " font-weight='600'" if bold else ""
    return (
        f"<text x='{x:.1f}' y='{y:.1f}' font-size='{size}' fill='{colour}' text-anchor='{anchor}'{weight}>{escape(words)}</text>"
    )


def picture(width: float, height: float, parts: Sequence[str], title: str) -> str:
    return (
        f"<svg xmlns='http://www.w3.org/2000/svg' width='{width:.0f}' height='{height:.0f}' "
        f"viewBox='0 0 {width:.0f} {height:.0f}' role='img' {FONT}>\n<title>{escape(title)}</title>\n"
        f"<rect width='100%' height='100%' fill='#ffffff'/>\n" + "\n".join(parts) + "\n</svg>\n"
    )


def wrapped(words: str, width: int) -> list[str]:
    lines = [""]
    for word in words.split():
        if len(lines[-1]) + len(word) >= width and lines[-1]:
            lines.append("")
        lines[-1] = f"{lines[-1]} {word}".strip()
    return lines


def bars(title: str, panels: Sequence[Panel], caption: Sequence[str]) -> str:
    """Draws two columns of panels; each panel has one measure, with a scale of its own and a bar for each server."""
    column, gap, left, row, name = 470.0, 30.0, 24.0, 22.0, 104.0
    width = left * 2 + column * 2 + gap
    parts = [text(left, 40, title, 20, bold=True)]
    y = 62.0
    for first in range(0, len(panels), 2):
        pair = panels[first : first + 2]
        for place, panel in enumerate(pair):
            x = left + place * (column + gap)
            better = "more is better" if panel.more_is_better else "less is better"
            parts.append(text(x, y + 16, panel.title, 14, bold=True))
            parts.append(text(x, y + 33, f"{panel.unit} · {better}", 11, PALE))
            longest = max(bar.value for bar in panel.bars) or 1.0
            room = column - name - 124
            for index, bar in enumerate(panel.bars):
                top = y + 44 + index * row
                length = max(1.5, bar.value / longest * room)
                parts.append(text(x + name - 8, top + 12, bar.label, 12, INK if bar.ours else PALE, "end", bar.ours))
                parts.append(
                    f"<rect x='{x + name:.1f}' y='{top:.1f}' width='{length:.1f}' height='{row - 6:.1f}' rx='2' "
                    f"fill='{OURS if bar.ours else THEIRS}'/>"
                )
                ratio = "" if bar.ratio is None else f"  ({bar.ratio:.2f} ×)"
                parts.append(text(x + name + length + 6, top + 12, f"{bar.value:,.{bar.digits}f}{ratio}", 12, INK, bold=bar.ours))
        y += 44 + row * max(len(panel.bars) for panel in pair) + 22
    parts.append(f"<line x1='{left}' y1='{y:.1f}' x2='{width - left}' y2='{y:.1f}' stroke='{RULE}'/>")
    for line in ("(n ×): times uWebSockets.js, measured in the same run", *caption):
        for piece in wrapped(line, 165):
            y += 16
            parts.append(text(left, y, piece, 11, PALE))
    return picture(width, y + 20, parts, title)


def steps(top: float, wanted: int = 5) -> list[float]:
    """Returns round numbers from 0 to at least `top`, for an axis."""
    rough = max(top, 1e-9) / wanted
    power = 10.0 ** math.floor(math.log10(rough))
    size = next(factor * power for factor in (1, 2, 5, 10) if factor * power >= rough)
    return [index * size for index in range(math.ceil(top / size) + 1)]


def line(title: str, points: Sequence[tuple[float, float]], across: str, unit: str, caption: Sequence[str]) -> str:
    """Draws one measure over time; the axis begins at zero, so that a constant measure is a flat line."""
    width, height, left, right, top, bottom = 860.0, 400.0, 70.0, 24.0, 80.0, 48.0
    along = steps(max(x for x, _ in points), 8)
    up = steps(max(y for _, y in points) * 1.05)
    last = max(x for x, _ in points) or 1.0

    def at(x: float, y: float) -> tuple[float, float]:
        return left + x / last * (width - left - right), height - bottom - y / up[-1] * (height - top - bottom)

    parts = [text(left, 36, title, 18, bold=True), text(left, 58, unit, 12, PALE)]
    for value in up:
        _, y = at(0, value)
        parts.append(f"<line x1='{left}' y1='{y:.1f}' x2='{width - right}' y2='{y:.1f}' stroke='{RULE}'/>")
        parts.append(text(left - 8, y + 4, f"{value:g}", 11, PALE, "end"))
    below = height - bottom + 18
    parts += [text(at(value, 0)[0], below, f"{value:g}", 11, PALE, "middle") for value in along if value <= last]
    parts.append(text(width - right, below + 18, across, 11, PALE, "end"))
    path = " ".join("{:.1f},{:.1f}".format(*at(x, y)) for x, y in points)
    parts.append(f"<polyline points='{path}' fill='none' stroke='{OURS}' stroke-width='2' stroke-linejoin='round'/>")
    y = height
    for sentence in caption:
        for piece in wrapped(sentence, 130):
            y += 16
            parts.append(text(left, y, piece, 11, PALE))
    return picture(width, y + 20, parts, title)
