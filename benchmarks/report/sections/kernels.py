# SPDX-License-Identifier: Apache-2.0
"""Kernels: on a GPU the bandwidth reached under its roofs, on a CPU INT4 against 16 bit over the number of rows."""

import re
from collections.abc import Mapping

from aerie.benchmarks.report.document import Block, Picture, Table
from aerie.benchmarks.report.sections.findings import Findings, pm, ratio
from aerie.benchmarks.results_file import ResultFile
from aerie.chart import Line, Lines

GPU, CPU = "kernels.gpu", "kernels.int4_cpu"
SUMMARY = re.compile(r"(\w+?)_ratio(_min)?_m(16|32)")
PEERS = {
    "ratio_bf16": "bfloat16",
    "ratio_fp32": "float32",
    "ratio_stock": "vLLM's INT4",
}
DASH = "6 4"


def on_gpu(result: ResultFile) -> Findings | None:
    """The result of `aerie bench kernels`; its own module draws it."""
    if not any(run.benchmark == GPU for run in result.runs):
        return None
    from aerie.benchmarks.kernels.gpu import plot

    panels = plot.panels(result)
    alt = "Bandwidth reached under two roofs, a copy and instruction issue; then peers' times over ours."
    found = {match: value for name, value in result.figures.items() if (match := SUMMARY.fullmatch(name))}
    said = []
    if "copy_gbs" in result.figures:
        shares = [value for name, value in result.figures.items() if name.startswith("share_")]
        reach = f"; our kernels reach {min(shares):.0%} to {max(shares):.0%} of that" if shares else ""
        said.append(f"**A copy on this GPU moves {result.figures['copy_gbs']:,.0f} GB a second{reach}.**")
    for match, value in found.items():
        if match[2] is None and match[3] == "16":
            said.append(f"Over linear layers of 16 rows `{match[1]}` takes {ratio(value)} our time.")
    blocks: list[Block] = [Picture("kernels", alt, panels)] if panels else []
    if found:
        rows = [[f"`{match[0]}`", ratio(value)] for match, value in found.items()]
        blocks.append(Table(["peer's time over ours", ""], rows))
    remarks = ["Above 1 ours is faster. Cold weights, one CUDA graph; what was refused is in `runs`."]
    return Findings(said, blocks, remarks)


def on_cpu(result: ResultFile) -> Findings | None:
    """INT4 layers on a CPU against other ways to the same product."""
    if not any(run.benchmark == CPU for run in result.runs):
        return None
    found = by_rows(result.figures)
    alt = "Time of a linear layer in each other way over that of our INT4 kernel; above 1 ours is faster."
    rows = [[str(m), *(pm(*found[figure][m]) if m in found[figure] else "–" for figure in PEERS)] for m in _rows(found)]
    blocks: list[Block] = [
        Picture("int4-rows", alt, [over_rows(result.figures)]),
        Table(["rows", *(f"{name} over ours" for name in PEERS.values())], rows),
    ]
    said = []
    if 1 in found["ratio_bf16"]:
        said.append(
            f"**A linear layer takes {ratio(*found['ratio_bf16'][1])} as long in bfloat16 as in INT4** on this CPU, "
            "for one row."
        )
    slower = [m for m in _rows(found) if found["ratio_bf16"].get(m, (1.0, None))[0] < 1]
    if slower:
        said.append(f"From {slower[0]} rows on bfloat16 is faster.")
    return Findings(
        said, blocks, ["Random weights, cold; a figure is the median over rounds of the geometric mean over layers."]
    )


Found = dict[str, dict[int, tuple[float, float | None]]]


def by_rows(figures: Mapping[str, float]) -> Found:
    """Ratio and spread, by peer and number of rows."""
    found: Found = {figure: {} for figure in PEERS}
    for name, value in figures.items():
        match = re.fullmatch(r"(ratio_\w+)_m(\d+)", name)
        if match and match[1] in PEERS:
            found[match[1]][int(match[2])] = (value, figures.get(f"{name}_std"))
    return found


def _rows(found: Found) -> list[int]:
    return sorted({m for own in found.values() for m in own})


def over_rows(figures: Mapping[str, float]) -> Lines:
    """A curve a peer over the numbers of rows, evenly spaced."""
    found = by_rows(figures)
    rows = _rows(found)
    curves = [Line("as fast", [(float(at), 1.0) for at in range(len(rows))], dash=DASH)]
    for figure, name in PEERS.items():
        own = [(float(at), found[figure][m]) for at, m in enumerate(rows) if m in found[figure]]
        if own:
            curves.append(Line(name, [(x, value) for x, (value, _) in own], spread=[std or 0.0 for _, (_, std) in own]))
    labels = [str(m) for m in rows]
    return Lines("INT4 linear layers on a CPU", "rows of x (M)", "times our time", curves, labels, from_zero=True)
