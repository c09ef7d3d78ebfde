# SPDX-License-Identifier: Apache-2.0
"""The mixture of experts of `aerie bench kernels` on a CPU, small: against a plain loop, and as it is timed."""

import inspect
from collections.abc import Callable, Sequence
from functools import partial

import pytest
import torch
from torch import Tensor
from torch.nn.functional import silu

from aerie.benchmarks.kernels.gpu import experts, peers
from aerie.benchmarks.kernels.gpu.experts import Layer, routed
from aerie.benchmarks.kernels.gpu.linear import OURS
from aerie.benchmarks.kernels.gpu.shapes import Experts
from aerie.benchmarks.kernels.gpu.ways import Way
from aerie.benchmarks.kernels.timing import Call

SMALL = Experts(hidden=256, inner=128, experts=6, chosen=2)
ROWS = (1, 5)


def plain(layer: Layer) -> Way:
    """Token by token, in float64."""

    def call(x_MH: Tensor, weights_MA: Tensor, ids_MA: Tensor) -> Tensor:
        y_MH = torch.zeros_like(x_MH, dtype=torch.float64)
        for token, choices in enumerate(ids_MA.tolist()):
            for place, expert in enumerate(choices):
                up_and_gate = layer.gate_up[expert].dequantise(torch.float64) @ x_MH[token].double()
                inner = silu(up_and_gate[: SMALL.inner]) * up_and_gate[SMALL.inner :]
                y_MH[token] += weights_MA[token, place] * (layer.down[expert].dequantise(torch.float64) @ inner)
        return y_MH

    return Way((), call)


def test_tokens_choose_distinct_experts() -> None:
    torch.manual_seed(0)
    x_MH, weights_MA, ids_MA = routed(SMALL, 50, torch.bfloat16, "cpu")
    assert x_MH.shape == (50, SMALL.hidden)
    assert torch.allclose(weights_MA.sum(1), torch.ones(50))
    assert all(len(set(choices)) == SMALL.chosen for choices in ids_MA.tolist())
    assert ids_MA.unique().tolist() == list(range(SMALL.experts))


def test_the_reference_is_that_of_a_plain_loop() -> None:
    torch.manual_seed(0)
    layer = Layer.random(SMALL, torch.float16, "cpu")
    inputs = routed(SMALL, 5, torch.float16, "cpu")
    assert torch.allclose(layer.exact(*inputs), plain(layer)(*inputs), rtol=1e-5)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_ours_is_right_in_both_types(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    (record,) = experts.check(SMALL, ROWS, dtype, "cpu", {OURS: experts.ours})
    assert record["kind"] == "error"
    assert isinstance(record["errors"], list)
    assert all(isinstance(error, float) and 0 < error < 8e-3 for error in record["errors"])


def one_expert(layer: Layer) -> Way:
    """As many bytes as the first expert's down."""
    return Way((layer.down[0].q_NK.clone(),), lambda x_MH, weights_MA, ids_MA, stored: x_MH)


def test_each_call_has_tokens_that_are_routed_anew() -> None:
    seen: list[Tensor] = []

    class Steady:
        def prepare(self, calls: Sequence[Call]) -> Callable[[], float]:
            assert all(isinstance(call, partial) for call in calls)
            seen.extend(call.args[2] for call in calls if isinstance(call, partial))
            return lambda: 10.0

    torch.manual_seed(0)
    stored = SMALL.hidden * SMALL.inner
    layer = experts.Prepared(SMALL, {OURS: one_expert}, "cpu", free=4 * stored)
    (record,) = layer.time(1, Steady(), rounds=5, budget=None)
    assert record["copies"] == 3
    assert len(seen) == 16
    assert len({tuple(ids.flatten().tolist()) for ids in seen}) > 3
    assert record["used"] == SMALL.chosen, "a single token uses as many experts as it chooses"
    assert record["bytes"] == SMALL.moved_bytes(1, SMALL.chosen)
    assert record["us"] == [10.0] * 5
    with pytest.raises(MemoryError, match="no room"):
        experts.Prepared(SMALL, {OURS: one_expert}, "cpu", free=stored)


def test_the_installed_vllm_asks_for_nothing_that_is_not_offered(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its functions as they are, recorded instead of called: the operator behind them needs a GPU."""
    asked: list[str] = []

    def recorded(function: Callable[..., Tensor], offered: dict[str, object]) -> Tensor:
        wanted = inspect.signature(function).parameters.values()
        assert [one.name for one in wanted if one.default is one.empty and one.name not in offered] == []
        asked.append(function.__name__)
        return torch.empty(2)

    monkeypatch.setattr(peers, "fitted", recorded)
    monkeypatch.setattr(peers, "operators", lambda *names, **_: __import__("vllm._custom_ops")._custom_ops)
    monkeypatch.setattr(peers, "locks", lambda device: torch.zeros(4))
    layer = Layer.random(SMALL, torch.bfloat16, "cpu")
    way = experts.marlin(layer)
    assert [tensor.shape[0] for tensor in way.tensors] == [SMALL.experts] * 4 + [4]
    way(*routed(SMALL, 3, torch.bfloat16, "cpu"))
    assert set(asked) == {"gptq_marlin_repack", "marlin_permute_scales", "fused_marlin_moe"}
