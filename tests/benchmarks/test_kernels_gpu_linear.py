# SPDX-License-Identifier: Apache-2.0
"""Linear layers of `aerie bench kernels` on a CPU: the same checks and records, on small shapes and another timer."""

import inspect
import time
from collections.abc import Callable, Sequence
from functools import partial

import pytest
import torch
from torch import Tensor

from aerie.benchmarks.errors import BenchmarkError
from aerie.benchmarks.kernels.gpu import linear, peers, ways
from aerie.benchmarks.kernels.gpu.linear import OURS
from aerie.benchmarks.kernels.gpu.shapes import Shape
from aerie.benchmarks.kernels.gpu.ways import Way, Weight
from aerie.benchmarks.kernels.timing import Call
from aerie.benchmarks.points import Record

SMALL = Shape(256, 192)
ROWS = (1, 3, 20)
HERE = {name: linear.BUILDS[name] for name in (OURS, "cublas")}


class Clock:
    """A timer for CPUs."""

    def prepare(self, calls: Sequence[Call]) -> Callable[[], float]:
        def run() -> float:
            start = time.perf_counter()
            for call in calls:
                call()
            return (time.perf_counter() - start) * 1e6 / len(calls)

        return run


def wrong(weight: Weight) -> Way:
    """A kernel that is off by one per cent."""
    return Way((weight.dequantise(weight.dtype),), lambda x, stored: torch.nn.functional.linear(x, stored) * 1.01)


def lost(weight: Weight) -> Way:
    """A kernel that is not there."""
    raise peers.PeerError("this vLLM has no operator\nand more that nobody reads")


def undefined(weight: Weight) -> Way:
    """A kernel that leaves its output unwritten."""
    return Way((), lambda x: torch.full((len(x), len(weight.q_NK)), torch.nan, dtype=x.dtype))


def kinds(records: list[Record]) -> list[tuple[str, str]]:
    return [(str(record["kind"]), str(record["way"])) for record in records]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_ours_and_a_plain_product_are_right_in_both_types(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    records = list(linear.check(SMALL, ROWS, dtype, "cpu", HERE))
    assert kinds(records) == [("error", OURS), ("error", "cublas")]
    for record in records:
        assert record["rows"] == list(ROWS)
        assert isinstance(record["errors"], list)
        assert all(isinstance(error, float) and 0 < error < 4e-3 for error in record["errors"])


def test_what_is_wrong_or_missing_is_refused_by_name_with_its_reason() -> None:
    torch.manual_seed(0)
    builds = {"wrong": wrong, "lost": lost, "undefined": undefined, **HERE}
    records = list(linear.check(SMALL, ROWS, torch.bfloat16, "cpu", builds))
    reasons = {str(record["way"]): str(record["reason"]) for record in records if record["kind"] == "refused"}
    assert reasons.keys() == {"wrong", "lost", "undefined"}
    assert reasons["wrong"].startswith("relative error in torch.bfloat16: 0.0099 at 1 rows, ")
    assert reasons["lost"] == "PeerError: this vLLM has no operator"
    assert "nan at 20 rows" in reasons["undefined"]
    assert next(record["errors"] for record in records if record["way"] == "undefined") == [None, None, None]
    assert linear.admitted(SMALL.name, builds, records) == HERE
    assert linear.admitted("another", builds, records) == builds


def test_what_of_ours_is_wrong_is_not_timed() -> None:
    records = list(linear.check(SMALL, ROWS, torch.bfloat16, "cpu", {OURS: wrong}))
    with pytest.raises(BenchmarkError, match="256x192 failed its check"):
        linear.admitted(SMALL.name, HERE, records)


def test_the_exact_product_is_that_of_the_dequantised_weight(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ways, "EXACT_OUTPUTS", 50)  # no divisor of the outputs
    weight = Weight.random(SMALL, torch.float16, "cpu")
    x = torch.randn(3, SMALL.inputs, dtype=torch.float16)
    scale = weight.scale_NG.double().repeat_interleave(128, dim=1)
    assert torch.allclose(weight.exact(x), x.double() @ ((weight.q_NK.double() - 8) * scale).T)


def test_copies_are_equal_and_lie_elsewhere() -> None:
    way = ways.ours(Weight.random(SMALL, torch.bfloat16, "cpu"))
    copies = list(way.copies(3))
    assert len({tensor.data_ptr() for copy in copies for tensor in copy.tensors}) == 3 * len(way.tensors)
    x = torch.randn(2, SMALL.inputs, dtype=torch.bfloat16)
    assert all(torch.equal(copy(x), way(x)) for copy in copies)


def test_there_are_as_many_copies_as_memory_has_room_for() -> None:
    assert ways.copies_that_fit(ways_bytes=10, free_bytes=1000) == 16
    assert ways.copies_that_fit(ways_bytes=100, free_bytes=1000) == 8  # a fifth is for outputs and graphs
    assert ways.copies_that_fit(ways_bytes=900, free_bytes=1000) == 0


def test_copies_outgrow_the_cache() -> None:
    h200 = 60 * 2**20
    assert ways.past_the_cache(16, 8_650_752, h200)
    assert not ways.past_the_cache(8, 8_650_752, h200)


def prepared(**builds: linear.Build) -> linear.Prepared:
    return linear.Prepared(SMALL, {**HERE, **builds}, "cpu", free=2**30, cache=2**16)


def test_every_round_of_every_way_is_kept() -> None:
    records = prepared().time(3, Clock(), rounds=6, budget=None)
    assert [(record["way"], record["rows"], record["copies"]) for record in records] == [
        (OURS, 3, 16),
        ("cublas", 3, 16),
    ]
    for record in records:
        assert isinstance(record["us"], list)
        assert len(record["us"]) == 6
        assert record["bytes"] == SMALL.moved_bytes(3)


def test_a_peer_that_cannot_be_built_or_prepared_does_not_stop_the_others() -> None:
    class Choosy(Clock):
        def prepare(self, calls: Sequence[Call]) -> Callable[[], float]:
            if any(call.func == nothing_read for call in calls if isinstance(call, partial)):
                raise RuntimeError("operation not permitted when stream is capturing")
            return super().prepare(calls)

    layer = prepared(lost=lost, undefined=undefined)
    nothing_read = layer.copies["undefined"][0]
    assert [(record["way"], record["reason"]) for record in layer.refused] == [
        ("lost", "PeerError: this vLLM has no operator")
    ]
    records = layer.time(1, Choosy(), rounds=5, budget=None)
    assert kinds(records) == [("refused", "undefined"), ("time", OURS), ("time", "cublas")]
    assert records[0]["case"] == "256x192_m1"


def test_too_few_copies_are_not_timed() -> None:
    with pytest.raises(MemoryError, match="room for 2 copies"):
        linear.Prepared(SMALL, HERE, "cpu", free=360_000, cache=2**20)


def test_a_function_gets_what_it_asks_for() -> None:
    def older(a: int, perm: str, b: int = 3) -> tuple[int, str, int]:
        return a, perm, b

    def newer(a: int) -> int:
        return a

    offered = {"a": 1, "perm": "in order", "c": None}
    assert peers.fitted(older, offered) == (1, "in order", 3)
    assert peers.fitted(newer, offered) == 1
    with pytest.raises(peers.PeerError, match="older asks for perm"):
        peers.fitted(older, {"a": 1})


@pytest.mark.parametrize("name", ["marlin", "machete"])
@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU, and perhaps the operator")
def test_without_its_operator_a_peer_says_so(name: str) -> None:
    (record,) = linear.check(SMALL, ROWS, torch.bfloat16, "cpu", {name: linear.BUILDS[name]})
    assert record["kind"] == "refused"
    assert str(record["reason"]).startswith("PeerError: this vLLM has no operator _C::")


def test_the_installed_vllm_asks_for_nothing_that_is_not_offered(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its functions as they are, up to the compiled operator, which needs a GPU: recorded instead of called."""
    asked: list[str] = []

    def recorded(function: Callable[..., Tensor], offered: dict[str, object]) -> Tensor:
        wanted = inspect.signature(function).parameters.values()
        assert [one.name for one in wanted if one.default is one.empty and one.name not in offered] == []
        asked.append(function.__name__)
        return torch.empty(0)

    monkeypatch.setattr(peers, "fitted", recorded)
    monkeypatch.setattr(peers, "operators", lambda *names, **_: __import__("vllm._custom_ops")._custom_ops)
    monkeypatch.setattr(peers, "locks", lambda device: torch.zeros(4))
    weight = Weight.random(SMALL, torch.bfloat16, "cpu")
    for peer in (peers.marlin, peers.machete):
        peer(weight)(torch.randn(1, SMALL.inputs))
    assert asked == [
        "gptq_marlin_repack", "marlin_permute_scales", "apply_gptq_marlin_linear", "machete_prepack_B", "machete_mm",
    ]  # fmt: skip
