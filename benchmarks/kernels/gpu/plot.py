# SPDX-License-Identifier: Apache-2.0
"""The picture of a result of `aerie bench kernels`: what share of the memory's bandwidth is reached, under two roofs.

The one is a copy in the same run, the other what instruction issue allows. Below, a panel for each peer: its time over
ours, so that above the dashed line ours is faster.
"""

from collections.abc import Mapping, Sequence

from aerie import chart
from aerie.benchmarks.kernels.gpu.figures import points
from aerie.benchmarks.kernels.gpu.shapes import QWEN3_235B
from aerie.benchmarks.results_file import ResultFile
from aerie.kernels.int4_gemm.tuning import bucket

COPY_DASH, ISSUE_DASH = "6 4", "2 3"
LEGEND = {QWEN3_235B.name: "128 experts"}
PEERS = {"marlin": "Marlin", "machete": "Machete", "cublas": "cuBLAS in bfloat16"}


def _line(name: str, rows: Sequence[int], values: Mapping[int, float], dash: str = "") -> list[chart.Line]:
    """A curve over the numbers of rows, evenly spaced; nothing where nothing was measured."""
    found = [(float(at), values[count]) for at, count in enumerate(rows) if count in values]
    return [chart.Line(name, found, dash=dash)] if found else []


def panels(result: ResultFile) -> list[chart.Lines]:
    """What there is to draw of a result; empty when nothing was timed."""
    timed = [(case, rows) for case, rows, _ in points(run.measured for run in result.runs)]
    cases = list(dict.fromkeys(case for case, _ in timed))
    rows = sorted({count for _, count in timed})
    labels = [str(count) for count in rows]

    def curves(figure: str) -> list[chart.Line]:
        """A line a case of the figures of this name."""
        found = result.figures
        named = {case: {count: f"{figure}_{case}_m{count}" for count in rows} for case in cases}
        values = {case: {m: found[name] for m, name in names.items() if name in found} for case, names in named.items()}
        return [line for case in cases for line in _line(LEGEND.get(case, case), rows, values[case])]

    drawn: list[chart.Lines] = []
    if shares := curves("share"):
        roofs = {count: f"issue_roof_m{bucket(count)}" for count in rows}
        roof = {count: result.figures[name] for count, name in roofs.items() if name in result.figures}
        shares += _line("a copy", rows, dict.fromkeys(rows, 1.0), COPY_DASH)
        shares += _line("instruction issue", rows, roof, ISSUE_DASH)
        title = f"INT4 on {result.provenance.machine.get('accelerator')}: bandwidth reached"
        drawn.append(chart.Lines(title, "rows of x (M)", "share of a copy's", shares, labels))
    for way, name in PEERS.items():
        if lines := curves(f"{way}_ratio"):
            lines += _line("as fast", rows, dict.fromkeys(rows, 1.0), COPY_DASH)
            drawn.append(chart.Lines(f"{name}'s time over ours", "rows of x (M)", "times", lines, labels))
    return drawn


def draw(result: ResultFile) -> str | None:
    """The picture as SVG; None when nothing was timed."""
    drawn = panels(result)
    return chart.draw(drawn) if drawn else None
