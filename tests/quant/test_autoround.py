# SPDX-License-Identifier: Apache-2.0
"""AutoRound in a layer's own memory: the updates of plain autograd, and the layer as it was in the end.

Shape suffixes: N outputs, K inputs, G groups of S inputs, D documents, L tokens, H hidden size.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call

from aerie.quant.halves import Halves
from aerie.quant.methods.autoround import Tuning, tune
from aerie.quant.methods.learned import HALF
from aerie.quant.methods.rtn import round_to_nearest
from aerie.quant.skeleton import Skeleton
from aerie.quant.stream import Checkpoint
from aerie.quant.weight import CHUNK_WEIGHTS, Int4Weight, Scheme

SaveModel = Callable[..., Path]
CPU = torch.device("cpu")
DOCUMENTS, LENGTH, GROUP = 6, 12, 32
SETTINGS = Tuning(iterations=40, documents=3, seed=0)
EXPERTS = {"mixture": True, "num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 64}
WIDE = {"intermediate_size": CHUNK_WEIGHTS // 64 + 128}
"""Rows of the MLP's first two weights, of 64 inputs, are updated in two parts."""


class Case:
    """A decoder layer, documents of random states, and what it makes of them before it is quantised."""

    def __init__(self, model: Path, symmetric: bool) -> None:
        self.skeleton = Skeleton(Checkpoint.open(model), CPU)
        self.layer = self.skeleton.layer(0)
        self.scheme = Scheme(GROUP, symmetric)
        self.positions = self.skeleton.positions(LENGTH)
        torch.manual_seed(1)
        self.states_DLH = torch.randn(DOCUMENTS, LENGTH, self.skeleton.config.hidden_size)
        self.wanted_DLH = self.skeleton.run(self.layer, self.states_DLH)
        self.counts_DL = torch.arange(LENGTH) < torch.arange(LENGTH - DOCUMENTS, LENGTH)[:, None]
        self.linears = {name: one for name, one in self.layer.named_modules() if isinstance(one, nn.Linear)}

    def start(self) -> dict[str, Int4Weight]:
        return {name: round_to_nearest(one.weight, self.scheme, "mse") for name, one in self.linears.items()}

    def sample(self, chosen_D: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        return self.states_DLH[chosen_D], self.wanted_DLH[chosen_D], self.counts_DL[chosen_D]

    def tune(self, advance: Callable[[float], None] = lambda loss: None) -> dict[str, Int4Weight]:
        arguments = (self.scheme, self.sample, self.positions, DOCUMENTS, SETTINGS, advance)
        return dict(tune(self.layer, self.start().items(), *arguments))


class Plain:
    """The paper's equation, left to autograd."""

    def __init__(self, weight_NK: Tensor, start: Int4Weight, scheme: Scheme) -> None:
        self._scheme, self._start = scheme, start
        self._weight_NGS = weight_NK.unflatten(1, (start.scale_NG.shape[1], -1))
        self._zero_NG1 = 8.0 if start.zero_NG is None else start.zero_NG.float()[..., None]
        self.v_NGS = torch.zeros_like(self._weight_NGS, requires_grad=True)
        self.f_NG1 = torch.ones_like(start.scale_NG, dtype=torch.float32)[..., None].requires_grad_()

    def levels(self) -> tuple[Tensor, Tensor]:
        exact = self._start.scale_NG.float()[..., None] * self.f_NG1
        scale_NG1 = exact + (self._scheme.stored(exact.detach()).float() - exact).detach()
        shifted_NGS = self._weight_NGS / scale_NG1 + self.v_NGS
        rounded_NGS = shifted_NGS + (shifted_NGS.round() - shifted_NGS).detach()
        return torch.clamp(rounded_NGS + self._zero_NG1, 0, 15), scale_NG1

    def weight(self) -> Tensor:
        q_NGS, scale_NG1 = self.levels()
        return ((q_NGS - self._zero_NG1) * scale_NG1).flatten(1)

    def step(self, rate: float) -> None:
        with torch.no_grad():
            # As offsets are kept: else quotients of a few bits lie within a rounding of the rate on a border.
            step = round(2 * HALF * rate) / (2 * HALF)
            for parameter, by, low, high in ((self.v_NGS, step, -0.5, 0.5), (self.f_NG1, rate, 0.5, 1.5)):
                if parameter.grad is not None:
                    parameter.sub_(by * parameter.grad.sign()).clamp_(low, high)
                    parameter.grad = None


def plain_updates(case: Case) -> tuple[dict[str, Plain], list[float]]:
    """What whole gradients teach, and the loss of every iteration."""
    start, losses = case.start(), []
    learned = {name: Plain(one.weight, start[name], case.scheme) for name, one in case.linears.items()}
    generator = torch.Generator().manual_seed(SETTINGS.seed)
    for iteration in range(SETTINGS.iterations):
        inputs, wanted, counts = case.sample(torch.randperm(DOCUMENTS, generator=generator)[: SETTINGS.documents])
        weights = {f"{name}.weight": one.weight() for name, one in learned.items()}
        outputs: Tensor = functional_call(case.layer, weights, (inputs,), dict(case.positions))
        loss = (outputs - wanted)[counts].square().mean()
        loss.backward()
        losses.append(float(loss.detach()))
        for one in learned.values():
            one.step((1 - iteration / SETTINGS.iterations) / SETTINGS.iterations)
    return learned, losses


@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("changes", [{}, WIDE, EXPERTS], ids=["dense", "wide", "moe"])
def test_updates_are_those_of_plain_autograd(save_model: SaveModel, changes: dict[str, Any], symmetric: bool) -> None:
    case = Case(save_model(**changes), symmetric)
    expected, losses = plain_updates(case)
    found: list[float] = []
    results = case.tune(found.append)
    # Each depends on all updates before it. A gradient that is 0 but for rounding may have either sign, so in the end
    # the two come apart.
    assert found[:6] == pytest.approx(losses[:6], rel=1e-3)
    assert found == pytest.approx(losses, rel=0.1)
    assert found[-1] < 0.8 * found[0]
    for name, weight in results.items():
        with torch.no_grad():
            q_NGS, scale_NG1 = expected[name].levels()
        assert (weight.q_NK == q_NGS.flatten(1)).float().mean() > 0.99, name
        assert (weight.scale_NG == scale_NG1.squeeze(-1)).float().mean() > 0.99, name


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_the_layer_is_left_as_it_was(save_model: SaveModel, dtype: torch.dtype) -> None:
    case = Case(save_model(dtype=dtype), symmetric=True)
    before = {name: tensor.clone() for name, tensor in case.layer.state_dict().items()}
    modules = dict(case.layer.named_modules())
    case.tune()
    assert dict(case.layer.named_modules()) == modules
    after = case.layer.state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(tensor, after[name]) for name, tensor in before.items())


def test_the_start_is_kept_where_nothing_is_better(save_model: SaveModel) -> None:
    case = Case(save_model(), symmetric=False)
    start = case.start()
    weights = {f"{name}.weight": one.dequantise() for name, one in start.items()}
    case.wanted_DLH = functional_call(case.layer, weights, (case.states_DLH,), dict(case.positions))
    for name, weight in case.tune().items():
        assert torch.equal(weight.q_NK, start[name].q_NK)
        assert torch.equal(weight.scale_NG, start[name].scale_NG)


@pytest.mark.parametrize("shape", [(1, 32), (7, 96), (3 * CHUNK_WEIGHTS // 512 + 5, 512)])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_halves_hold_the_weight_and_as_many_integers(shape: tuple[int, int], dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    weight = torch.randn(shape).to(dtype).float()
    expected = weight.clone()
    halves = Halves(weight)
    assert halves.weight_NK.dtype == dtype
    assert not halves.integer_NK.any()
    integers = torch.randint(-(2**15), 2**15, shape, dtype=torch.int16)
    halves.integer_NK.copy_(integers)
    assert torch.equal(halves.weight_NK.float(), expected)
    assert torch.equal(halves.integer_NK, integers)
    halves.restore()
    assert torch.equal(weight, expected)
