# SPDX-License-Identifier: Apache-2.0
"""Line and bar charts as SVG, without a plotting library: panels below each other on a white sheet.

The sheet is opaque, so a chart reads the same on a light page and a dark one. Colours are Okabe and Ito's, which
colour-blind readers tell apart.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from xml.sax.saxutils import escape

COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#56b4e9", "#e69f00", "#000000")
INK, PALE = "#24292f", "#d8dee4"
WIDTH, LEFT, RIGHT, TOP, PLOT, BOTTOM = 760, 64, 150, 40, 220, 52
LABEL_WIDTH = 210
"""Left of a bar chart, for the names of its bars."""
BAR = 22
STYLE = 'font-family="DejaVu Sans, Helvetica, Arial, sans-serif" font-size="12"'


@dataclass(frozen=True)
class Line:
    """One curve; `marks` draws its points instead of joining them."""

    name: str
    points: Sequence[tuple[float, float]]
    marks: bool = False


@dataclass(frozen=True)
class Lines:
    """A panel of curves over a common axis."""

    title: str
    x: str
    y: str
    lines: Sequence[Line]

    @property
    def height(self) -> int:
        """Pixels."""
        return TOP + PLOT + BOTTOM

    def draw(self) -> list[str]:
        """Elements, from the panel's own origin."""
        points = [point for line in self.lines for point in line.points]
        xs, ys = _ticks([x for x, _ in points]), _ticks([y for _, y in points])
        right, bottom = WIDTH - RIGHT, TOP + PLOT

        def at(x: float, y: float) -> tuple[float, float]:
            across, up = (x - xs[0]) / (xs[-1] - xs[0]), (y - ys[0]) / (ys[-1] - ys[0])
            return LEFT + across * (right - LEFT), bottom - up * PLOT

        drawn = [_text(LEFT, 22, self.title, weight="bold", size=14)]
        for y in ys:
            drawn += [_rule(LEFT, at(xs[0], y)[1], right), _text(LEFT - 8, at(xs[0], y)[1] + 4, _number(y), "end")]
        drawn += [_text(at(x, ys[0])[0], bottom + 18, _number(x), "middle") for x in xs]
        drawn.append(_text((LEFT + right) / 2, bottom + 40, self.x, "middle"))
        middle = TOP + PLOT / 2
        drawn.append(_text(16, middle, self.y, "middle", rotate=f"rotate(-90 16 {middle})"))
        for index, line in enumerate(self.lines):
            colour = COLOURS[index % len(COLOURS)]
            drawn += _curve([at(x, y) for x, y in line.points], colour, line.marks)
            y = TOP + 8.0 + 20 * index
            sample = [(right + 24.0, y)] if line.marks else [(right + 14.0, y), (right + 34.0, y)]
            drawn += _curve(sample, colour, line.marks)
            drawn.append(_text(right + 42, y + 4, line.name))
        return drawn


@dataclass(frozen=True)
class Bar:
    """One bar, with the spread drawn on both sides of its end."""

    name: str
    value: float
    spread: float | None = None


@dataclass(frozen=True)
class Bars:
    """A panel of horizontal bars from 0."""

    title: str
    x: str
    bars: Sequence[Bar]

    @property
    def height(self) -> int:
        """Pixels."""
        return TOP + BAR * len(self.bars) + BOTTOM

    def draw(self) -> list[str]:
        """Elements, from the panel's own origin."""
        ticks = _ticks([0.0, *(one.value + (one.spread or 0.0) for one in self.bars)])
        right, bottom = WIDTH - 60, TOP + BAR * len(self.bars)

        def at(value: float) -> float:
            return LABEL_WIDTH + value / ticks[-1] * (right - LABEL_WIDTH)

        drawn = [_text(LEFT, 22, self.title, weight="bold", size=14)]
        for tick in ticks:
            line = f'<line x1="{at(tick):.1f}" y1="{TOP}" x2="{at(tick):.1f}" y2="{bottom}" stroke="{PALE}"/>'
            drawn += [line, _text(at(tick), bottom + 18, _number(tick), "middle")]
        drawn.append(_text((LABEL_WIDTH + right) / 2, bottom + 40, self.x, "middle"))
        for index, one in enumerate(self.bars):
            y = TOP + BAR * index
            wide = at(one.value) - LABEL_WIDTH
            drawn.append(_text(LABEL_WIDTH - 8, y + 15, one.name, "end"))
            drawn.append(f'<rect x="{LABEL_WIDTH}" y="{y + 4}" width="{wide:.1f}" height="14" fill="{COLOURS[4]}"/>')
            low, high = (at(max(0.0, one.value + sign * (one.spread or 0.0))) for sign in (-1, 1))
            if one.spread:
                drawn.append(_rule(low, y + 11, high, INK))
                drawn += [
                    f'<line x1="{x:.1f}" y1="{y + 7}" x2="{x:.1f}" y2="{y + 15}" stroke="{INK}"/>' for x in (low, high)
                ]
            drawn.append(_text(high + 6, y + 15, f"{one.value:.2f}"))
        return drawn


def draw(panels: Sequence[Lines | Bars]) -> str:
    """The panels as one SVG file."""
    height = sum(panel.height for panel in panels)
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" width="{WIDTH}" height="{height}" '
        f"{STYLE}>",
        f'<rect width="{WIDTH}" height="{height}" rx="8" fill="#ffffff"/>',
    ]
    top = 0
    for panel in panels:
        parts += [f'<g transform="translate(0 {top})">', *panel.draw(), "</g>"]
        top += panel.height
    return "\n".join([*parts, "</svg>", ""])


def _ticks(values: Sequence[float]) -> list[float]:
    """Four to eight round numbers that enclose the values."""
    low, high = min(values), max(values)
    span = (high - low) or abs(high) or 1.0
    power = 10.0 ** math.floor(math.log10(span / 5))
    step = next(power * factor for factor in (1, 2, 5, 10) if span / (power * factor) <= 6)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [round(step * index, 12) for index in range(first, max(last, first + 1) + 1)]


def _number(value: float) -> str:
    return f"{value:,.0f}" if value == int(value) else f"{value:.4g}"


def _curve(points: Sequence[tuple[float, float]], colour: str, marks: bool) -> list[str]:
    if marks or len(points) == 1:
        return [f'<circle cx="{x:.1f}" cy="{y:.1f}" r="4" fill="{colour}"/>' for x, y in points]
    path = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
    return [f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="2"/>']


def _rule(left: float, y: float, right: float, colour: str = PALE) -> str:
    return f'<line x1="{left:.1f}" y1="{y:.1f}" x2="{right:.1f}" y2="{y:.1f}" stroke="{colour}"/>'


def _text(
    x: float, y: float, text: str, anchor: str = "start", weight: str = "normal", size: int = 12, rotate: str = ""
) -> str:
    turned = f' transform="{rotate}"' if rotate else ""
    place = f'x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" font-weight="{weight}" font-size="{size}"'
    return f'<text {place} fill="{INK}"{turned}>{escape(text)}</text>'
