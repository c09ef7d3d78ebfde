# SPDX-License-Identifier: Apache-2.0
"""What `aerie bench kernels` makes of records whose answer one can work out by hand, and the picture of a result."""

from xml.etree import ElementTree

import pytest

from aerie import chart
from aerie.benchmarks.kernels.gpu import plot
from aerie.benchmarks.kernels.gpu.figures import figures, issue_roof_gbs
from aerie.benchmarks.kernels.gpu.shapes import BYTES_PER_WEIGHT, QWEN3_235B, SHAPES, Shape
from aerie.benchmarks.points import Record
from aerie.benchmarks.results_file import Provenance, ResultFile, Run

COPY: Record = {"kind": "copy", "copy_gbs": 4000.0, "copy_gbs_std": 1.0}
END: Record = {"kind": "end", "complete": True}


def time(case: str, rows: int, way: str, *us: float, moved: int = 8_000_000) -> Record:
    return {"kind": "time", "case": case, "rows": rows, "way": way, "us": list(us), "bytes": moved, "copies": 16}


def result(records: list[Record]) -> ResultFile:
    provenance = Provenance(
        commit="0", versions={}, arguments={}, seeds=[], inputs={}, machine={"accelerator": "NVIDIA H200"}
    )
    runs = [Run(benchmark="kernels.gpu", measured=record) for record in records]
    return ResultFile(provenance=provenance, runs=runs, figures=figures(records))


def test_shapes_are_named_inputs_by_outputs() -> None:
    assert [shape.name for shape in SHAPES] == [
        "4096x4096", "4096x6144", "4096x12288", "12288x4096", "4096x24576", "4096x151936",
    ]  # fmt: skip
    assert (QWEN3_235B.hidden, QWEN3_235B.inner, QWEN3_235B.experts, QWEN3_235B.chosen) == (4096, 1536, 128, 8)


def test_bytes_are_integers_scales_and_activations() -> None:
    # 128 x 2 integers of half a byte, a scale of two bytes for each of two outputs, 3 rows of 128 in and 2 out.
    assert Shape(128, 2).moved_bytes(3) == 128 + 4 + 2 * 3 * (128 + 2)
    assert Shape(4096, 4096).moved_bytes(1) == 8650752 + 16384  # 8.65 MB, as the kernel's own docstring says
    one_expert = 3 * 4096 * 1536 * BYTES_PER_WEIGHT
    assert round(one_expert / 1e6, 2) == 9.73
    assert QWEN3_235B.moved_bytes(1, 8) == round(8 * one_expert) + 2 * (2 * 4096 + 2 * 8 * 1536)


def test_a_time_is_a_median_and_its_share_is_of_the_copy() -> None:
    found = figures([COPY, time("4096x4096", 1, "ours", 4.0, 9.0, 5.0)])
    assert found["us_4096x4096_m1"] == 5.0
    assert found["us_4096x4096_m1_std"] == pytest.approx(2.64575)
    assert found["share_4096x4096_m1"] == 0.4  # 8 MB in 5 us are 1600 GB/s
    assert found["copy_gbs"] == 4000.0


def test_a_ratio_is_theirs_over_ours_round_by_round() -> None:
    """The GPU slows down to half its speed in the second round, for both: the ratio knows nothing of that."""
    found = figures([time("4096x4096", 1, "ours", 4, 8, 4), time("4096x4096", 1, "marlin", 6, 12, 6)])
    assert found["marlin_ratio_4096x4096_m1"] == 1.5


def test_summaries_are_over_linear_layers() -> None:
    records = []
    for case, rows, theirs in (
        ("a", 1, 3.0),
        ("b", 1, 8.0),
        ("a", 16, 4.0),
        ("b", 16, 16.0),
        ("a", 32, 2.0),
        ("b", 32, 2.0),
    ):
        records += [time(case, rows, "ours", 4, 4), time(case, rows, "marlin", theirs, theirs)]
    records += [time("moe_4x2_e8", 1, "ours", 4, 4), time("moe_4x2_e8", 1, "marlin", 1, 1)]
    found = figures(records, layers=("a", "b"), rows=(1, 16, 32))
    assert found["marlin_ratio_m16"] == 2.0  # the geometric mean of 1 and 4
    assert found["marlin_ratio_min_m16"] == 0.75
    assert (found["marlin_ratio_m32"], found["marlin_ratio_min_m32"]) == (0.5, 0.5)
    assert found["marlin_ratio_moe_4x2_e8_m1"] == 0.25


def test_a_peer_that_lacks_a_layer_has_no_summary_nor_has_a_run_that_was_interrupted() -> None:
    records = [time("a", 16, "ours", 4, 4), time("a", 16, "machete", 8, 8)]
    found = figures(records, layers=("a", "b"), rows=(16,))
    assert found["machete_ratio_a_m16"] == 2.0
    assert "machete_ratio_m16" not in found
    assert "machete_ratio_min_m16" not in found


def test_the_largest_error_of_each_way() -> None:
    def error(way: str, *errors: float | None) -> Record:
        return {"kind": "error", "case": "a", "way": way, "dtype": "bfloat16", "rows": [1, 2], "errors": list(errors)}

    found = figures([error("ours", 1e-3, 2e-3), error("ours", 5e-4, 1e-4), error("marlin", 3e-3, None)])
    assert (found["error_ours"], found["error_marlin"]) == (2e-3, 3e-3)


def test_a_result_is_complete_when_it_says_so() -> None:
    assert figures([COPY])["complete"] == 0.0
    assert figures([COPY, {"kind": "end", "complete": False}])["complete"] == 0.0
    assert figures([COPY, END])["complete"] == 1.0


def test_the_draft_step_is_summed_up_as_its_own_benchmark_does() -> None:
    draft: list[Record] = [
        {"kind": "draft", "part": part, "tokens": 1, "bytes": 4, "ours": 2.0, "ours_std": 0.1, "replaced": replaced}
        for part, replaced in (("prologue", 4.0), ("gate_elementwise", 2.0), ("head", 3.0))
    ]
    assert figures([COPY, *draft])["ratio_step_t1"] == 1.5


def test_the_roof_of_instruction_issue() -> None:
    # An H200 at four instructions a weight: as docs/kernels.md has it, what its memory delivers.
    assert issue_roof_gbs(132, 1980, 4.0, BYTES_PER_WEIGHT) == pytest.approx(4312.4, abs=0.1)
    assert issue_roof_gbs(1, 1, 1.0, 1.0) == pytest.approx(0.128)  # 128 lanes, a million ticks
    roof: Record = {"kind": "issue_roof", "bucket": 16, "per_weight": 2.0, "clock_mhz": 1980.0, "gbs": 8000.0}
    assert figures([COPY, roof])["issue_roof_m16"] == 2.0


def lines(panel: chart.Lines) -> dict[str, list[tuple[float, float]]]:
    return {line.name: list(line.points) for line in panel.lines}


def test_the_picture_has_both_roofs_and_a_panel_for_each_peer() -> None:
    roofs: list[Record] = [{"kind": "issue_roof", "bucket": at, "gbs": gbs} for at, gbs in ((16, 8000.0), (32, 6000.0))]
    timed = [
        time(case, rows, way, us, us)
        for case in ("4096x4096", "moe_4096x1536_e128")
        for rows in (1, 32)
        for way, us in (("ours", 5.0), ("marlin", 10.0))
    ]
    drawn = result([COPY, *roofs, *timed, END])
    shares, marlin = plot.panels(drawn)
    assert list(shares.labels) == ["1", "32"]
    assert lines(shares) == {
        "4096x4096": [(0.0, 0.4), (1.0, 0.4)],
        "128 experts": [(0.0, 0.4), (1.0, 0.4)],
        "a copy": [(0.0, 1.0), (1.0, 1.0)],
        "instruction issue": [(0.0, 2.0), (1.0, 1.5)],
    }
    assert lines(marlin)["4096x4096"] == [(0.0, 2.0), (1.0, 2.0)]
    picture = plot.draw(drawn)
    assert picture is not None
    root = ElementTree.fromstring(picture)
    assert sum("stroke-dasharray" in one.attrib for one in root.iter()) == 2 * (
        2 + 1
    )  # roofs and as-fast, in legends too


def test_nothing_timed_is_no_picture() -> None:
    assert plot.draw(result([COPY, {"kind": "end", "complete": False}])) is None
