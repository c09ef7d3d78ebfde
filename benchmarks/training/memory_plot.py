# SPDX-License-Identifier: Apache-2.0
"""The memory curves as SVG, on logarithmic axes: a power law is a straight line, L^2 twice as steep as L."""

import math
from collections.abc import Sequence

from aerie.benchmarks.training.growth import MIB, Peak

WIDTH, HEIGHT, LEFT, RIGHT, TOP, BOTTOM = 760, 420, 70, 190, 50, 50
COLOURS = {"ours": "#2f9e44", "speculators": "#868e96"}
DASHES = {1: "6 5", 7: "none"}
FONT = 'font-family="DejaVu Sans, Verdana, sans-serif"'


def _scale(values: Sequence[float], low: float, high: float) -> tuple[float, float]:
    """Slope and offset that send log2 of the values' range to low..high."""
    least, most = math.log2(min(values)), math.log2(max(values))
    slope = (high - low) / (most - least)
    return slope, low - slope * least


def draw(peaks: Sequence[Peak]) -> str:
    """A line for each trainer and number of steps."""
    mib = [one.peak_bytes / MIB for one in peaks]
    ticks = [2.0**power for power in range(math.floor(math.log2(min(mib))), math.ceil(math.log2(max(mib))) + 1)]
    lengths = sorted({one.length for one in peaks})
    x_slope, x_offset = _scale(lengths, LEFT, WIDTH - RIGHT)
    y_slope, y_offset = _scale(ticks, HEIGHT - BOTTOM, TOP)

    def x(length: float) -> float:
        return round(x_slope * math.log2(length) + x_offset, 1)

    def y(size: float) -> float:
        return round(y_slope * math.log2(size) + y_offset, 1)

    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" {FONT} font-size="13" fill="#495057">',
        f'<rect width="{WIDTH}" height="{HEIGHT}" rx="8" fill="#ffffff"/>',
        f'<text x="{LEFT}" y="26" font-size="15" font-weight="bold" fill="#212529">'
        "Peak memory of one forward and backward pass, MiB</text>",
    ]
    for tick in ticks:
        parts.append(f'<path d="M{LEFT} {y(tick)}H{WIDTH - RIGHT}" stroke="#e9ecef"/>')
        parts.append(f'<text x="{LEFT - 8}" y="{y(tick) + 4}" text-anchor="end">{tick:g}</text>')
    below = HEIGHT - BOTTOM + 20
    parts += [f'<text x="{x(length)}" y="{below}" text-anchor="middle">{length}</text>' for length in lengths]
    middle = (LEFT + WIDTH - RIGHT) / 2
    parts.append(f'<text x="{middle}" y="{HEIGHT - 10}" text-anchor="middle">tokens in the document</text>')
    for side, steps in sorted({(one.side, one.steps) for one in peaks}):
        curve = sorted((one.length, one.peak_bytes / MIB) for one in peaks if (one.side, one.steps) == (side, steps))
        line = " ".join(f"{x(length)},{y(size)}" for length, size in curve)
        style = (
            f'fill="none" stroke="{COLOURS[side]}" stroke-width="2.5" stroke-dasharray="{DASHES.get(steps, "none")}"'
        )
        parts.append(f'<polyline points="{line}" {style}/>')
        parts += [f'<circle cx="{x(at)}" cy="{y(size)}" r="3.5" fill="{COLOURS[side]}"/>' for at, size in curve]
        label = f"{side}, {steps} step{'s' if steps > 1 else ''}: {curve[-1][1]:.0f}"
        parts.append(f'<text x="{WIDTH - RIGHT + 12}" y="{y(curve[-1][1]) + 4}" fill="{COLOURS[side]}">{label}</text>')
    return "\n".join([*parts, "</svg>"]) + "\n"
