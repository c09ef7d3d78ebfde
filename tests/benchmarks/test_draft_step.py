# SPDX-License-Identifier: Apache-2.0
"""What the benchmark of the draft step compares, and what it makes of its records; timing itself needs a GPU."""

from pathlib import Path

import pytest
import torch

from aerie.benchmarks.errors import BenchmarkError
from aerie.benchmarks.kernels import draft_step
from aerie.benchmarks.kernels.draft_step_parts import Sizes, Step
from aerie.benchmarks.points import Record

TINY = Sizes(hidden=32, heads=2, head_dim=8, vocabulary=90, draft_vocabulary=40)
PARTS = ["prologue", "gate_elementwise", "gate_headwise", "head"]


@pytest.mark.parametrize("tokens", [1, 3])
@pytest.mark.parametrize("name", PARTS)
def test_all_ways_compute_the_same(name: str, tokens: int) -> None:
    torch.manual_seed(0)
    part = dict(Step(TINY, tokens, torch.float32, "cpu").parts())[name]()
    assert part.error() < 1e-6
    ours = part.ways["ours"]()
    for way in part.ways.values():
        torch.testing.assert_close(way(), ours, rtol=1e-5, atol=1e-5)


def test_bytes_are_those_of_the_operators_docstrings() -> None:
    parts = {name: make().bytes for name, make in Step(TINY, 3, torch.bfloat16, "cpu").parts()}
    assert parts["prologue"] == 4 * 3 * 32 + 4 * 3 * 32 + 4 * 32
    assert parts["gate_elementwise"] == 2 * 16 * 64 + 2 * 3 * 64 + 4 * 3 * 16
    assert parts["gate_headwise"] == 2 * 2 * 64 + 2 * 3 * 64 + 4 * 3 * 16
    assert parts["head"] == 2 * 40 * 32 + 2 * 3 * 32


def test_every_part_is_checked_before_it_is_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    records = draft_step.errors(TINY, torch.bfloat16, (1, 3), "cpu")
    assert [record["part"] for record in records] == PARTS * 2
    monkeypatch.setitem(draft_step.TOLERANCE, torch.bfloat16, 1e-9)
    with pytest.raises(BenchmarkError, match=r"prologue at 1 tokens in torch\.bfloat16: relative error"):
        draft_step.errors(TINY, torch.bfloat16, (1,), "cpu")


def test_figures() -> None:
    def record(part: str, ours: float, replaced: float, **more: float) -> Record:
        return {
            "part": part,
            "tokens": 4,
            "bytes": 4_000_000,
            "ours": ours,
            "ours_std": 0.5,
            "replaced": replaced,
            **more,
        }

    records: list[Record] = [
        {"part": "head", "tokens": 1, "error": 1e-4},
        {"part": "head", "tokens": 4, "error": 3e-4},
        {"copy_gbs": 4000.0},
        record("prologue", 2, 8),
        record("gate_elementwise", 4, 6),
        record("gate_headwise", 2, 3),
        record("head", 10, 18, local=12),
    ]
    found = draft_step.figures(records)
    assert found["error_head"] == 3e-4
    assert (found["us_head_t4"], found["us_head_t4_std"]) == (10, 0.5)
    assert (found["ratio_head_t4"], found["ratio_head_local_t4"]) == (1.8, 1.2)
    assert found["share_head_t4"] == 0.1  # 4 MB in 10 us are 400 GB/s
    assert found["ratio_step_t4"] == 2.0  # the head-wise gate is another step's
    assert found["copy_gbs"] == 4000


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_it_measures_nothing(tmp_path: Path) -> None:
    with pytest.raises(BenchmarkError, match="no CUDA GPU"):
        draft_step.main(tmp_path / "result.json")
    assert not list(tmp_path.iterdir())
