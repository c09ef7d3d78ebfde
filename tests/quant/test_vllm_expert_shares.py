# SPDX-License-Identifier: Apache-2.0
"""Experts made and loaded by vLLM's own classes as each of two ranks has them, run by our methods; here on a CPU.

Tolerance as in test_vllm_experts.py. Scales are powers of two, so that every format holds the same weights.
"""

from collections.abc import Callable
from itertools import count
from typing import NamedTuple

import pytest
import torch
from vllm.config import get_current_vllm_config
from vllm.model_executor.layers.fused_moe import config as moe_config
from vllm.model_executor.layers.fused_moe.layer import FusedMoEFactory
from vllm.model_executor.layers.fused_moe.runner.moe_runner import MoERunner
from vllm.model_executor.layers.quantization import get_quantization_config
from vllm.model_executor.layers.quantization.base_config import QuantizationConfig
from vllm.platforms import current_platform

from aerie.kernels.int4_moe.reference import int4_moe
from aerie.quant import vllm_config
from aerie.quant.errors import QuantError
from aerie.quant.formats import FORMATS
from aerie.quant.formats.base import Selection
from aerie.quant.formats.nibbles import pack
from aerie.quant.kernel_choice import CHOICE_VARIABLE
from aerie.quant.vllm_experts import AerieInt4Experts, Int4Experts
from aerie.quant.vllm_moe import AerieInt4MoeExperts
from aerie.quant.weight import Int4Weight, Scheme

pytestmark = [
    pytest.mark.skipif(not current_platform.is_cpu(), reason="the class for GPUs is forced where vLLM is for CPUs"),
    pytest.mark.usefixtures("vllm_alone"),
]
RANKS, EXPERTS, CHOSEN, HIDDEN, INNER, TOKENS = 2, 5, 2, 384, 384, 11
CHANNEL = 0
TOLERANCE = 8e-3
LAYER = count()
"""vLLM knows each layer by its name."""
Mixture = dict[tuple[int, str], Int4Weight]


class Form(NamedTuple):
    """A checkpoint format, with zero points or without."""

    format: str
    group: int = 64
    with_zeros: bool = False
    changes: dict[str, object] = {}  # noqa: RUF012 -- nobody changes it

    def config(self) -> QuantizationConfig:
        symmetric = not self.with_zeros or self.format == "gptq"
        scheme = Scheme(self.group, symmetric, torch.float16)
        stored = FORMATS[self.format].quantization_config(scheme, Selection((), (), ()))
        made: QuantizationConfig = get_quantization_config(self.format).from_config({**stored, **self.changes})
        return made

    def tensors(self, name: str, weight: Int4Weight) -> dict[str, torch.Tensor]:
        stored = FORMATS[self.format].tensors(name, weight)
        if self.format == "gptq" and weight.zero_NG is not None:  # our own files never have them: stored less one
            stored[f"{name}.qzeros"] = pack(((weight.zero_NG - 1) & 0xF).T.contiguous())
        return stored


FORMS = {
    "compressed-tensors": Form("compressed-tensors"),
    "compressed-tensors, groups of 192": Form("compressed-tensors", 192),
    "compressed-tensors with zero points": Form("compressed-tensors", with_zeros=True),
    "compressed-tensors by channel": Form("compressed-tensors", CHANNEL),
    "compressed-tensors by channel with zero points": Form("compressed-tensors", CHANNEL, with_zeros=True),
    "gptq": Form("gptq"),
    "gptq by channel": Form("gptq", CHANNEL),
    "gptq with zero points": Form("gptq", with_zeros=True, changes={"sym": False}),
    "awq": Form("awq", with_zeros=True),
}


def mixture(form: Form) -> Mixture:
    def weight(outputs: int, inputs: int) -> Int4Weight:
        q = torch.randint(0, 16, (outputs, inputs), dtype=torch.uint8)
        groups = inputs // form.group if form.group else 1
        scale = torch.exp2(torch.randint(-7, -4, (outputs, groups)).float()).half()
        zero = torch.randint(0, 16, scale.shape, dtype=torch.uint8) if form.with_zeros else None
        return Int4Weight(q, scale, zero)

    shapes = {"gate_proj": (INNER, HIDDEN), "up_proj": (INNER, HIDDEN), "down_proj": (HIDDEN, INNER)}
    return {(expert, name): weight(*shape) for expert in range(EXPERTS) for name, shape in shapes.items()}


class Rank(NamedTuple):
    """One process of so many, and whether it holds whole experts or a part of each."""

    rank: int = 0
    of: int = 1
    whole_experts: bool = False

    def share(self, weights: Mixture) -> tuple[torch.Tensor, torch.Tensor]:
        """Dequantised, gate over up and down, of all experts, with zeros for what is another rank's."""
        dense = {key: weight.dequantise().double() for key, weight in weights.items()}
        held = torch.arange(INNER).chunk(self.of)[self.rank] if not self.whole_experts else torch.arange(INNER)
        here = torch.arange(EXPERTS).tensor_split(self.of)[self.rank] if self.whole_experts else torch.arange(EXPERTS)
        gate_up_E2IH = torch.zeros(EXPERTS, 2 * len(held), HIDDEN, dtype=torch.float64)
        down_EHI = torch.zeros(EXPERTS, HIDDEN, len(held), dtype=torch.float64)
        for expert in here.tolist():
            gate_up = [dense[expert, name][held] for name in ("gate_proj", "up_proj")]
            gate_up_E2IH[expert], down_EHI[expert] = torch.cat(gate_up), dense[expert, "down_proj"][:, held]
        return gate_up_E2IH, down_EHI


Make = Callable[[Form, Rank], MoERunner]


@pytest.fixture
def make(monkeypatch: pytest.MonkeyPatch) -> Make:
    """A layer of experts as a rank makes it, empty."""

    def layer(form: Form, rank: Rank) -> MoERunner:
        monkeypatch.setattr(moe_config, "get_tensor_model_parallel_rank", lambda: rank.rank)
        parallel = get_current_vllm_config().parallel_config
        monkeypatch.setattr(parallel, "enable_expert_parallel", rank.whole_experts)
        return FusedMoEFactory(
            num_experts=EXPERTS,
            top_k=CHOSEN,
            hidden_size=HIDDEN,
            intermediate_size=INNER,
            params_dtype=torch.bfloat16,
            quant_config=form.config(),
            tp_size=rank.of,
            prefix=f"model.layers.{next(LAYER)}.mlp.experts",
        )

    return layer


def load(runner: MoERunner, form: Form, weights: Mixture) -> None:
    """As models do it, and as loaders do once all is read."""
    files = (form.tensors(f"{expert}.{name}", weight) for (expert, name), weight in weights.items())
    loaded = set(runner.load_weights(item for file in files for item in file.items()))
    expected = {f"routed_experts.{name}" for name, _ in runner.routed_experts.named_parameters()}
    assert loaded == {name for name in expected if not name.endswith("_bias")}
    runner.routed_experts.quant_method.process_weights_after_loading(runner.routed_experts)


@pytest.fixture(params=[AerieInt4MoeExperts, AerieInt4Experts])
def ours(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> type[Int4Experts]:
    """The method that serves: the one for GPUs, or the one for this CPU."""
    if request.param is AerieInt4MoeExperts:
        request.getfixturevalue("gpu_class")
    monkeypatch.setenv(CHOICE_VARIABLE, "aerie")
    chosen: type[Int4Experts] = request.param
    return chosen


def error(y: torch.Tensor, expected: torch.Tensor) -> float:
    return float((y.double() - expected).norm() / expected.norm())


@pytest.mark.parametrize("whole_experts", [False, True], ids=["parts of experts", "whole experts"])
@pytest.mark.parametrize("form", FORMS)
def test_every_rank_holds_its_share_and_ranks_add_up(
    make: Make, ours: type[Int4Experts], form: str, whole_experts: bool
) -> None:
    torch.manual_seed(0)
    layout, weights = FORMS[form], mixture(FORMS[form])
    x = torch.randn(TOKENS, HIDDEN).bfloat16()
    ids = torch.stack([torch.randperm(EXPERTS)[:CHOSEN] for _ in range(TOKENS)]).to(torch.int32)
    ids[0], ids[1] = torch.tensor([0, 1]), torch.tensor([4, 3])
    chosen = torch.rand(TOKENS, CHOSEN)
    outputs = []
    for rank in (Rank(), *(Rank(rank, RANKS, whole_experts) for rank in range(RANKS))):
        runner = make(layout, rank)
        experts = runner.routed_experts
        assert type(experts.quant_method) is ours
        load(runner, layout, weights)
        y = experts.forward_modular(x, chosen, ids)
        assert isinstance(y, torch.Tensor)
        assert error(y, int4_moe(x, chosen, ids, *rank.share(weights))) < TOLERANCE
        outputs.append(y.double())
        if rank.whole_experts:
            here = torch.arange(EXPERTS).tensor_split(RANKS)[rank.rank]
            assert experts.local_num_experts == len(here)
            others = ~torch.isin(ids, here).any(1)
            assert others.any()
            assert not y[others].any()
    whole, *parts = outputs
    assert error(sum(parts, torch.zeros(())), whole) < TOLERANCE


class AskedError(Exception):
    """vLLM's own method was asked for."""


@pytest.mark.parametrize("form", [Form("compressed-tensors", 128), Form("gptq", 128), Form("awq", 128, True)], ids=str)
def test_a_share_that_would_cut_a_group_is_not_ours(
    monkeypatch: pytest.MonkeyPatch, make: Make, ours: type[Int4Experts], form: Form
) -> None:
    def stock(*_: object) -> None:
        raise AskedError

    for base in ("CompressedTensorsConfig", "AutoAWQConfig", "AutoGPTQConfig"):
        monkeypatch.setattr(getattr(vllm_config, base), "get_quant_method", stock)
    with pytest.raises(QuantError if ours is AerieInt4Experts else AskedError):
        make(form, Rank(0, RANKS))
    for rank in (Rank(), Rank(0, RANKS, whole_experts=True)):
        assert type(make(form, rank).routed_experts.quant_method) is ours
