# SPDX-License-Identifier: Apache-2.0
"""Line and bar charts as SVG, without a plotting library: panels below each other on a white sheet.

The sheet is opaque, so a chart reads the same on a light page and a dark one; a page that shows it inline may colour it
by its classes instead (`sheet`, `rule`, `ink`, and `c0`, `c1`, ... for the colours). Colours are Okabe and Ito's, which
colour-blind readers tell apart.
"""

import math
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass, replace
from xml.sax.saxutils import escape

COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#56b4e9", "#e69f00", "#000000")
INK, PALE = "#24292f", "#d8dee4"
WIDTH, LEFT, TOP, PLOT, BOTTOM, ENTRY = 760, 64, 40, 220, 52, 20
BAR, LETTER, SHORT = 22, 8, 14
STYLE = 'font-family="DejaVu Sans, Helvetica, Arial, sans-serif" font-size="12"'
SECOND = "1 4"
"""The pattern of curves beyond the colours, which begin again."""


@dataclass(frozen=True)
class Sheet:
    """How wide a chart is. Without room on the right the names of the curves stand below them."""

    width: int
    left: int
    right: int
    names: int
    """Left of a bar chart, for the names of its bars."""
    legend_below: bool = False


WIDE = Sheet(WIDTH, LEFT, 150, 210)
NARROW = Sheet(380, 62, 20, 138, legend_below=True)
"""For a phone held upright."""


@dataclass(frozen=True)
class Line:
    """One curve; `marks` draws its points instead of joining them."""

    name: str
    points: Sequence[tuple[float, float]]
    marks: bool = False
    dash: str = ""
    """SVG's pattern of a limit that is drawn beside what was measured, in ink: `6 4`."""
    spread: Sequence[float] = ()
    """How far each point reaches up and down."""
    notes: Sequence[str] = ()
    """What stands beside each point."""


@dataclass(frozen=True)
class Lines:
    """A panel of curves over a common axis."""

    title: str
    x: str
    y: str
    lines: Sequence[Line]
    labels: Sequence[str] = ()
    """What stands at x = 0, 1, 2, ... where the axis is not one of round numbers."""
    rules: Sequence[tuple[float, str]] = ()
    """Upright dashed lines, each with its name."""
    from_zero: bool = False
    """Whether the upright axis begins at 0, whatever the points."""
    logarithmic: bool = False
    """Whether the axis across is; all points must then be above 0."""

    def height(self, sheet: Sheet) -> int:
        """Pixels."""
        below = ENTRY * (math.ceil(len(self.lines) / self._columns) + 1) if sheet.legend_below else 0
        return _top(self.title, sheet) + PLOT + BOTTOM + below

    @property
    def _columns(self) -> int:
        """Of a legend below the plot."""
        return 2 if all(len(line.name) <= SHORT for line in self.lines) else 1

    def draw(self, sheet: Sheet = WIDE) -> list[str]:
        """Elements, from the panel's own origin."""
        points = [point for line in self.lines for point in line.points]
        named = {float(x): name for x, name in enumerate(self.labels)}
        across = [x for x, _ in points]
        named = named or {x: _number(x) for x in (_decades(across) if self.logarithmic else _ticks(across))}
        xs = list(named) if len(named) > 1 else [-1.0, 1.0]
        ys = _ticks([*self._reach(), *([0.0] if self.from_zero else [])])
        top = _top(self.title, sheet)
        right, bottom = sheet.width - sheet.right, top + PLOT

        def at(x: float, y: float) -> tuple[float, float]:
            first, last, here = (math.log(one) if self.logarithmic else one for one in (xs[0], xs[-1], x))
            up = (y - ys[0]) / (ys[-1] - ys[0])
            return sheet.left + (here - first) / (last - first) * (right - sheet.left), bottom - up * PLOT

        drawn = _title(self.title, sheet)
        for y in ys:
            level = at(xs[0], y)[1]
            drawn += [_rule(sheet.left, level, right), _text(sheet.left - 8, level + 4, _number(y), "end")]
        drawn += [_text(at(x, ys[0])[0], bottom + 18, name, "middle") for x, name in named.items()]
        drawn.append(_text((sheet.left + right) / 2, bottom + 40, self.x, "middle"))
        drawn.append(_text(14, top + PLOT / 2, self.y, "middle", rotate=f"rotate(-90 14 {top + PLOT / 2})"))
        for x, name in self.rules:
            place = at(x, ys[0])[0]
            drawn.append(_segment(place, top, place, bottom, 'class="line ink" stroke-dasharray="2 4"', INK))
            drawn.append(_text(place + 4, top + 12, name, size=11))
        for index, line in enumerate(self.lines):
            drawn += _measured(line, [at(x, y) for x, y in line.points], PLOT / (ys[-1] - ys[0]), index)
        return drawn + self._legend(sheet, top)

    def _reach(self) -> list[float]:
        """The heights that must have room."""
        reach = [y for line in self.lines for _, y in line.points]
        for line in self.lines:
            for (_, y), spread in zip(line.points, line.spread, strict=False):
                reach += [y - spread, y + spread]
        return reach

    def _legend(self, sheet: Sheet, top: int) -> list[str]:
        below, columns = sheet.legend_below, self._columns if sheet.legend_below else 1
        step = ENTRY if below else min(float(ENTRY), PLOT / max(1, len(self.lines)))
        left, y = (sheet.left, top + PLOT + BOTTOM + 10) if below else (sheet.width - sheet.right + 14, top + 8)
        drawn: list[str] = []
        for index, line in enumerate(self.lines):
            level = y + step * (index // columns)
            x = left + index % columns * (sheet.width - sheet.left) // 2
            sample = [(x + 10.0, level)] if line.marks else [(float(x), level), (x + 20.0, level)]
            drawn += _curve(sample, line, index)
            drawn.append(_text(x + 28, level + 4, line.name))
        return drawn


@dataclass(frozen=True)
class Bar:
    """One bar, with the spread drawn on both sides of its end."""

    name: str
    value: float
    spread: float | None = None
    colour: int = 4
    """Index into the colours."""


@dataclass(frozen=True)
class Bars:
    """A panel of horizontal bars from 0."""

    title: str
    x: str
    bars: Sequence[Bar]

    def height(self, sheet: Sheet) -> int:
        """Pixels."""
        return _top(self.title, sheet) + BAR * len(self.bars) + BOTTOM

    def draw(self, sheet: Sheet = WIDE) -> list[str]:
        """Elements, from the panel's own origin."""
        ticks = _ticks([0.0, *(one.value + (one.spread or 0.0) for one in self.bars)])
        top = _top(self.title, sheet)
        left, right, bottom = sheet.names, sheet.width - 60, top + BAR * len(self.bars)

        def at(value: float) -> float:
            return left + value / ticks[-1] * (right - left)

        drawn = _title(self.title, sheet)
        for tick in ticks:
            drawn.append(_segment(at(tick), top, at(tick), bottom, 'class="rule"', PALE))
            drawn.append(_text(at(tick), bottom + 18, _number(tick), "middle"))
        drawn.append(_text((left + right) / 2, bottom + 40, self.x, "middle"))
        for index, one in enumerate(self.bars):
            y = top + BAR * index
            wide, colour = at(one.value) - left, one.colour % len(COLOURS)
            paint = f'class="dot c{colour}" fill="{COLOURS[colour]}"'
            drawn.append(_text(left - 8, y + 15, one.name, "end"))
            drawn.append(f'<rect x="{left}" y="{y + 4}" width="{wide:.1f}" height="14" {paint}/>')
            low, high = (at(max(0.0, one.value + sign * (one.spread or 0.0))) for sign in (-1, 1))
            if one.spread:
                drawn.append(_segment(low, y + 11, high, y + 11, 'class="line ink"', INK))
                drawn += [_segment(x, y + 7, x, y + 15, 'class="line ink"', INK) for x in (low, high)]
            drawn.append(_text(high + 6, y + 15, f"{one.value:.2f}"))
        return drawn


def draw(panels: Sequence[Lines | Bars], sheet: Sheet = WIDE) -> str:
    """The panels as one SVG file."""
    height = sum(panel.height(sheet) for panel in panels)
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {sheet.width} {height}" width="{sheet.width}" '
        f'height="{height}" {STYLE}>',
        f'<rect class="sheet" width="{sheet.width}" height="{height}" rx="8" fill="#ffffff"/>',
    ]
    top = 0
    for panel in panels:
        parts += [f'<g transform="translate(0 {top})">', *panel.draw(sheet), "</g>"]
        top += panel.height(sheet)
    return "\n".join([*parts, "</svg>", ""])


def _wrapped(title: str, sheet: Sheet) -> list[str]:
    return textwrap.wrap(title, (sheet.width - 24) // LETTER) or [""]


def _top(title: str, sheet: Sheet) -> int:
    """Where the plot begins, below its title."""
    return TOP + 18 * (len(_wrapped(title, sheet)) - 1)


def _title(title: str, sheet: Sheet) -> list[str]:
    left = 12 if sheet.legend_below else sheet.left
    lines = enumerate(_wrapped(title, sheet))
    return [_text(left, 22 + 18 * index, line, weight="bold", size=14) for index, line in lines]


def _ticks(values: Sequence[float]) -> list[float]:
    """Four to eight round numbers that enclose the values."""
    low, high = min(values), max(values)
    span = (high - low) or abs(high) or 1.0
    power = 10.0 ** math.floor(math.log10(span / 5))
    step = next(power * factor for factor in (1, 2, 5, 10) if span / (power * factor) <= 6)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [round(step * index, 12) for index in range(first, max(last, first + 1) + 1)]


def _decades(values: Sequence[float]) -> list[float]:
    """1, 2 and 5 times the powers of ten, as many as enclose the values; at least two."""
    low, high = min(values), max(values)
    steps = [
        factor * 10.0**power
        for power in range(math.floor(math.log10(low)) - 1, math.ceil(math.log10(high)) + 2)
        for factor in (1, 2, 5)
    ]
    first = max(at for at, step in enumerate(steps) if step <= low * (1 + 1e-9))
    last = min(at for at, step in enumerate(steps) if step >= high * (1 - 1e-9))
    return steps[first : max(last, first + 1) + 1]


def _number(value: float) -> str:
    return f"{value:,.0f}" if value == int(value) else f"{value:.4g}"


def _measured(line: Line, points: list[tuple[float, float]], scale: float, index: int) -> list[str]:
    """A curve with its spread and notes; `scale` is pixels for one unit upwards."""
    drawn: list[str] = []
    colour = f'class="line c{index % len(COLOURS)}"'
    for (x, y), spread in zip(points, line.spread, strict=False):
        if spread:
            drawn.append(_segment(x, y - spread * scale, x, y + spread * scale, colour, COLOURS[index % len(COLOURS)]))
    drawn += _curve(points, line, index)
    if (line.spread or line.notes) and not line.marks and len(points) > 1:
        drawn += _curve(points, replace(line, marks=True), index)
    notes = zip(points, line.notes, strict=False)
    return drawn + [_text(x + 6, y - 6, note, size=10) for (x, y), note in notes]


def _curve(points: Sequence[tuple[float, float]], line: Line, index: int) -> list[str]:
    name = "ink" if line.dash else f"c{index % len(COLOURS)}"
    colour = INK if line.dash else COLOURS[index % len(COLOURS)]
    if line.marks and index >= len(COLOURS) and not line.dash:
        hollow = f'class="line {name}" r="3.5" fill="none" stroke="{colour}" stroke-width="1.5"'
        return [f'<circle {hollow} cx="{x:.1f}" cy="{y:.1f}"/>' for x, y in points]
    if line.marks or len(points) == 1:
        return [f'<circle class="dot {name}" cx="{x:.1f}" cy="{y:.1f}" r="4" fill="{colour}"/>' for x, y in points]
    path = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
    dash = line.dash or (SECOND if index >= len(COLOURS) else "")
    pattern = f' stroke-dasharray="{dash}" stroke-linecap="round"' if dash else ""
    return [f'<polyline class="line {name}" points="{path}" fill="none" stroke="{colour}" stroke-width="2"{pattern}/>']


def _rule(left: float, y: float, right: float) -> str:
    return _segment(left, y, right, y, 'class="rule"', PALE)


def _segment(x1: float, y1: float, x2: float, y2: float, more: str, colour: str) -> str:
    return f'<line {more} x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}" stroke="{colour}"/>'


def _text(
    x: float, y: float, text: str, anchor: str = "start", weight: str = "normal", size: int = 12, rotate: str = ""
) -> str:
    turned = f' transform="{rotate}"' if rotate else ""
    place = f'x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" font-weight="{weight}" font-size="{size}"'
    return f'<text {place} fill="{INK}"{turned}>{escape(text)}</text>'
