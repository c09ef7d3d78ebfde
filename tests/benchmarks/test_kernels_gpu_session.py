# SPDX-License-Identifier: Apache-2.0
"""How a run of `aerie bench kernels` spends its time, what it does when something fails, and what it leaves behind."""

import json
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from pathlib import Path

import pytest
import torch

from aerie import cli
from aerie.benchmarks.kernels import timing
from aerie.benchmarks.kernels.draft_step_parts import Sizes, Step
from aerie.benchmarks.kernels.gpu import machine, plan, run, tune
from aerie.benchmarks.kernels.gpu.session import Session
from aerie.benchmarks.kernels.gpu.shapes import ROWS, SHAPES, Shape
from aerie.benchmarks.kernels.timing import Budget, Call, copy_bandwidth, interleaved
from aerie.benchmarks.points import Record
from aerie.benchmarks.results_file import ResultFile
from aerie.kernels.int4_gemm import tuning
from aerie.kernels.int4_gemm.tuning import Cut

CUT = Cut(64, 16, 4, 4, 3)


class Told:
    """A timer and a clock: each call takes as many seconds and microseconds as it is told, and nothing runs."""

    def __init__(self, us: dict[str, float]) -> None:
        self.us, self.now, self.order = us, 0.0, list[str]()

    def clock(self) -> float:
        return self.now

    def prepare(self, calls: Sequence[Call]) -> Callable[[], float]:
        name = str(calls[0]())

        def replay() -> float:
            self.order.append(name)
            self.now += 1
            return self.us[name]

        return replay


def ways(*names: str) -> dict[str, list[Call]]:
    return {name: [partial(str, name)] for name in names}


def session(seconds: float = 100.0) -> tuple[Session, Told]:
    told = Told({"ours": 5.0, "marlin": 10.0})
    return Session(told, Budget(seconds, told.clock), rounds=6, points=2), told


def test_ways_take_turns_and_change_their_order() -> None:
    told = Told({"ours": 5.0, "marlin": 10.0})
    assert interleaved(ways("ours", "marlin"), told, 3) == {"ours": [5.0] * 3, "marlin": [10.0] * 3}
    warm, *rounds = zip(told.order[::2], told.order[1::2], strict=True)
    assert warm == ("ours", "marlin")
    assert rounds == [("ours", "marlin"), ("marlin", "ours"), ("ours", "marlin")]


def test_a_spent_budget_cuts_rounds_but_not_below_the_least() -> None:
    told = Told({"ours": 5.0})
    assert len(interleaved(ways("ours"), told, 30, Budget(10, told.clock))["ours"]) == 9  # and one to warm up
    assert len(interleaved(ways("ours"), told, 30, Budget(0, told.clock))["ours"]) == timing.LEAST_ROUNDS


def test_the_copy_counts_bytes_read_and_written() -> None:
    class Steady:
        def prepare(self, calls: Sequence[Call]) -> Callable[[], float]:
            return lambda: 500.0

    assert copy_bandwidth(Steady(), 3, "cpu", size=1_000_000) == {"copy_gbs": 4.0, "copy_gbs_std": 0.0}


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU")
def test_a_graph_runs_its_calls_and_tells_the_time_of_one() -> None:
    count = torch.zeros(1, device="cuda")
    replay = timing.GraphTimer().prepare([lambda: count.add_(1)] * 4)
    assert count.item() == 4  # to warm up; the capture itself runs nothing
    assert replay() > 0
    assert count.item() == 12  # a replay that keeps the GPU at work, and the one that counts


def test_points_share_what_time_is_left() -> None:
    it, told = session(100)
    shares: list[float] = []

    def measure(budget: Budget) -> Iterable[Record]:
        shares.append(budget.left())
        told.now += 70
        return []

    it.point("a", measure)
    it.point("b", measure)
    assert shares == [50, 30]


def test_a_point_without_time_is_named() -> None:
    it, told = session(10)
    told.now = 10
    it.point("a_m1", lambda _: pytest.fail("there is no time for it"))
    end = it.end()
    assert (end["skipped"], end["complete"]) == (["a_m1"], False)


def test_a_point_that_fails_is_named_and_the_next_is_measured() -> None:
    it, _ = session()

    def half(_: Budget) -> Iterator[Record]:
        yield {"kind": "cut"}
        raise RuntimeError("CUDA error: too many resources requested for launch\nCompile with ...")

    it.point("a", half)
    it.point("b", lambda _: [{"kind": "cut"}])
    refused = {"kind": "refused", "case": "a", "way": "ours"}
    reason = "RuntimeError: CUDA error: too many resources requested for launch"
    assert it.records == [{"kind": "cut"}, {**refused, "reason": reason}, {"kind": "cut"}]
    assert it.wrong() == ["a"]
    assert it.end()["complete"] is False


def test_what_is_refused_is_said_once_a_reason() -> None:
    it, _ = session()
    missing = "PeerError: this vLLM has no operator _C::machete_mm"
    it.records += [{"kind": "refused", "case": case, "way": "machete", "reason": missing} for case in ("a", "b", "a")]
    assert it.refusals() == [f"machete at a, b: {missing}"]


def test_points_with_fewer_rounds_are_named() -> None:
    it, _ = session()
    shared: Record = {"kind": "time", "case": "a", "way": "ours"}
    it.records += [{**shared, "rows": 1, "us": [1.0] * 6}, {**shared, "rows": 2, "us": [1.0] * 5}]
    it.records += [{"kind": "draft", "part": "head", "tokens": 4, "rounds": 5}]
    assert it.end()["fewer_rounds"] == ["a_m2", "draft_head_t4"]
    assert it.end()["complete"] is True


def test_the_plan_has_every_shape_and_number_of_rows() -> None:
    it, told = session()
    names = [name for name, _ in plan.plan(it, "cpu", 1980.0)]
    assert names[:2] == ["copy", "issue_roof"]
    for shape in SHAPES:
        assert names.count(shape.name) == 2  # bfloat16 and float16
        assert [f"{shape.name}_m{rows}" in names for rows in ROWS] == [True] * len(ROWS)
    assert max(names.index(shape.name) for shape in SHAPES) < names.index("4096x4096_m1"), "first right, then fast"
    searched = plan.Searched(tuning.table("default"), Budget(1), "cpu")
    more = [name for name, _ in plan.plan(it, "cpu", None, searched)]
    assert len(more) == len(names) - 1 + len(SHAPES) * len(tuning.BUCKETS)
    assert told.order == []


def test_the_parts_of_a_draft_step_are_all_there() -> None:
    tiny = Sizes(hidden=32, heads=2, head_dim=8, vocabulary=90, draft_vocabulary=40)
    assert tuple(name for name, _ in Step(tiny, 1, torch.float32, "cpu").parts()) == plan.PARTS


def options(**changed: bool) -> run.Options:
    return run.Options(rounds=6, budget_seconds=60, tune=changed.get("tune", False), tune_seconds=60, seed=0)


def test_ctrl_c_leaves_what_was_measured_marked_incomplete(tmp_path: Path) -> None:
    it, _ = session()

    def interrupted(_: Budget) -> Iterable[Record]:
        raise KeyboardInterrupt

    first: Record = {
        "kind": "time",
        "case": "4096x4096",
        "rows": 1,
        "way": "ours",
        "us": [5.0] * 6,
        "bytes": 8,
        "copies": 16,
    }
    points = [("4096x4096_m1", lambda _: [first]), ("copy", interrupted), ("never", lambda _: pytest.fail("ended"))]
    assert run.measure(it, points) is True
    made = run.result(it, options(), {"name": "NVIDIA H200"}, interrupted=True)
    written = run.write(made, tmp_path / "kernels-nvidia-h200.json")
    assert written == [tmp_path / "kernels-nvidia-h200.json"]
    found = ResultFile.read(written[0])
    assert found.figures == {"us_4096x4096_m1": 5.0, "us_4096x4096_m1_std": 0.0, "complete": 0.0}
    assert found.runs[-1].measured["interrupted"] is True
    assert found.provenance.machine["gpu"] == {"name": "NVIDIA H200"}
    assert {"torch", "triton"} <= found.provenance.versions.keys()


def test_what_nvidia_smi_says() -> None:
    found = machine.parse_smi("580.65.06, 34, 1980, 3201, 1980, 3201, 123.45, [N/A]")
    assert found["driver_version"] == "580.65.06"
    assert (found["temperature.gpu"], found["power.draw"], found["power.limit"]) == (34.0, 123.45, None)
    assert machine.highest_clock({"before": found}) == 1980.0
    assert machine.highest_clock({"before": {}}) is None


def test_candidates_fill_the_gpu_and_leave_each_split_two_steps() -> None:
    for shape, greatest in ((SHAPES[0], 16), (SHAPES[5], 64), (Shape(512, 128), 32)):
        cuts = tune.candidates(shape, greatest, programs=396)
        assert cuts
        assert len(set(cuts)) == len(cuts) <= 30
        for cut in cuts:
            assert cut.tile_m == greatest
            assert cut.splits == 1 or shape.inputs // 256 // cut.splits >= 2
            assert cut.splits == 1 or -(-shape.outputs // cut.tile_n) * cut.splits <= 2 * 396


def test_a_table_is_read_back_as_it_was_measured(tmp_path: Path) -> None:
    shape = SHAPES[0]
    records: list[Record] = [
        {"kind": "cut", "case": shape.name, "bucket": "16", "cut": {**vars(CUT), "stages": 4}, "us": 9.0},
        {"kind": "cut", "case": shape.name, "bucket": "16", "cut": vars(CUT), "us": 8.0},
    ]
    known = tuning.table("sm_90")
    shapes, name = tune.entries(records, SHAPES, known), "kernels-nvidia-h200.json"
    ahead = tune.ahead(dict.fromkeys((f"marlin_ratio_4096x4096_m{rows}" for rows in ROWS), 1.1), SHAPES, "8.0", name)
    (tmp_path / "test-gpu.json").write_text(json.dumps(tune.table(known, shapes, ahead, "Test GPU", name)))
    read = tuning.table("test-gpu", folder=tmp_path)
    assert tune.entries([], SHAPES, read) == shapes, "what is not searched again stays"
    assert tuning.measured_ahead(tmp_path, "Test GPU", (4096, 4096, 128, 1)) == name
    assert read.measured
    assert "benchmarks/results/kernels-nvidia-h200.json" in read.note
    assert tuning.cut(read, 1, shape.outputs, shape.inputs, 128) == CUT
    other = (32, shape.outputs, shape.inputs, 128)
    assert tuning.cut(read, *other) == tuning.cut(known, *other)


def test_ahead_is_what_no_rival_beats_at_any_m() -> None:
    shape = Shape(4096, 4096)
    figures = {f"{peer}_ratio_{shape.name}_m{rows}": 1.0 for peer in ("marlin", "machete") for rows in ROWS}
    entry = {"n": 4096, "k": 4096, "group": 128, "result": "r.json"}
    assert tune.ahead(figures, SHAPES, "9.0", "r.json") == [entry]
    without_machete = {name: value for name, value in figures.items() if "machete" not in name}
    assert tune.ahead(without_machete, SHAPES, "9.0", "r.json") == []
    assert tune.ahead(without_machete, SHAPES, "8.0", "r.json") == [entry]
    assert tune.ahead(figures | {f"marlin_ratio_{shape.name}_m64": 0.99}, SHAPES, "9.0", "r.json") == []


def test_results_are_named_after_the_gpu() -> None:
    assert run.result_path("NVIDIA H200").name == "kernels-nvidia-h200.json"
    assert run.result_path("NVIDIA H200").parent.name == "results"


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_the_command_says_what_is_missing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["aerie", "bench", "kernels", "--out", str(tmp_path / "result.json")])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    assert ended.value.code == 1
    said = capsys.readouterr().err
    assert said.startswith("aerie: error: this times Triton kernels on a GPU, and here is missing: a")
    assert said.count("\n") == 1
    assert not list(tmp_path.iterdir())
