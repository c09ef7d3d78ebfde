# SPDX-License-Identifier: Apache-2.0
"""Layers of vLLM's own classes, filled by its own loaders, multiplied by the class for GPUs; here on a CPU.

Tolerance, for each element: y is rounded once, half a unit in its last place, and sums are in float32. Scales are
powers of two, so that every format and type holds the same weight.
"""

import weakref
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import product
from typing import Any

import pytest
import torch
from vllm.model_executor.layers import linear
from vllm.model_executor.layers.linear import (
    ColumnParallelLinear,
    LinearBase,
    MergedColumnParallelLinear,
    QKVParallelLinear,
    RowParallelLinear,
)
from vllm.model_executor.layers.quantization import get_quantization_config
from vllm.model_executor.layers.quantization.auto_awq import AutoAWQConfig, AutoAWQLinearMethod
from vllm.model_executor.layers.quantization.base_config import QuantizationConfig
from vllm.model_executor.layers.vocab_parallel_embedding import ParallelLMHead
from vllm.platforms import current_platform
from vllm.utils.torch_utils import set_default_torch_dtype

from aerie.quant.formats import FORMATS
from aerie.quant.formats.base import Selection
from aerie.quant.formats.nibbles import pack
from aerie.quant.kernel_choice import CHOICE_VARIABLE
from aerie.quant.vllm_gemm import AerieInt4GemmLinearKernel
from aerie.quant.weight import Int4Weight, Scheme

pytestmark = [
    pytest.mark.skipif(not current_platform.is_cpu(), reason="the class is forced where vLLM was built for CPUs"),
    pytest.mark.usefixtures("vllm_alone", "gpu_class"),
]
HIDDEN, HEADS, KV_HEADS, HEAD, INNER, VOCAB = 384, 4, 2, 24, 384, 128
HALF_ULP = {torch.bfloat16: 2.0**-8, torch.float16: 2.0**-11}
ACCUMULATION = 1e-5
PREFIX = "model.layers.0.mlp.layer"
PACKED = {"layer": ["layer"]}
CHANNEL = 0
GROUPS = (64, 192, CHANNEL)


def gptq_tensors(weight: Int4Weight, offset: int) -> dict[str, torch.Tensor]:
    """With zero points, which our own files never have."""
    stored = FORMATS["gptq"].tensors("layer", weight)
    assert weight.zero_NG is not None
    return stored | {"layer.qzeros": pack(((weight.zero_NG - offset) & 0xF).T.contiguous())}


@dataclass(frozen=True)
class Form:
    """A checkpoint format."""

    format: str
    symmetric: bool
    changes: dict[str, object]
    tensors: Callable[[Int4Weight], dict[str, torch.Tensor]]

    def config(self, group: int) -> QuantizationConfig:
        scheme = Scheme(group, self.symmetric, torch.float16)
        stored = FORMATS[self.format].quantization_config(scheme, Selection(("lm_head",), (), ()))
        made: QuantizationConfig = get_quantization_config(self.format).from_config({**stored, **self.changes})
        made.packed_modules_mapping = PACKED
        return made


def own(name: str) -> Callable[[Int4Weight], dict[str, torch.Tensor]]:
    return lambda weight: FORMATS[name].tensors("layer", weight)


FORMS = {
    "compressed-tensors": Form("compressed-tensors", True, {}, own("compressed-tensors")),
    "compressed-tensors with zero points": Form("compressed-tensors", False, {}, own("compressed-tensors")),
    "awq": Form("awq", False, {}, own("awq")),
    "gptq": Form("gptq", True, {}, own("gptq")),
    "gptq with zero points": Form("gptq", True, {"sym": False}, lambda weight: gptq_tensors(weight, 1)),
    "gptq v2 with zero points": Form(
        "gptq", True, {"sym": False, "checkpoint_format": "gptq_v2"}, lambda weight: gptq_tensors(weight, 0)
    ),
}


@dataclass(frozen=True)
class Kind:
    """A layer class, with the parts that a checkpoint has of it and whether a rank holds a part of its inputs."""

    make: Callable[..., LinearBase]
    parts: dict[Any, int]
    inputs: int = HIDDEN
    by_inputs: bool = False


KINDS = {
    "column": Kind(lambda **options: ColumnParallelLinear(HIDDEN, INNER, **options), {None: INNER}),
    "gate over up": Kind(
        lambda **options: MergedColumnParallelLinear(HIDDEN, [INNER, INNER], **options), {0: INNER, 1: INNER}
    ),
    "queries, keys, values": Kind(
        lambda **options: QKVParallelLinear(HIDDEN, HEAD, HEADS, KV_HEADS, **options),
        {"q": HEADS * HEAD, "k": KV_HEADS * HEAD, "v": KV_HEADS * HEAD},
    ),
    "row": Kind(lambda **options: RowParallelLinear(INNER, HIDDEN, **options), {None: HIDDEN}, INNER, by_inputs=True),
}


def random_weight(outputs: int, inputs: int, group: int, with_zeros: bool) -> Int4Weight:
    groups = inputs // group if group else 1
    q = torch.randint(0, 16, (outputs, inputs), dtype=torch.uint8)
    scale = torch.exp2(torch.randint(-7, -4, (outputs, groups)).float()).half()
    return Int4Weight(q, scale, torch.randint(0, 16, scale.shape, dtype=torch.uint8) if with_zeros else None)


def load(layer: torch.nn.Module, tensors: dict[str, torch.Tensor], part: object = None) -> None:
    """As models do it: each parameter by its own loader, with the part's name for fused layers."""
    for name, tensor in tensors.items():
        parameter = getattr(layer, name.removeprefix("layer."))
        parameter.weight_loader(parameter, tensor, *([] if part is None else [part]))


def share(tensor: torch.Tensor, dim: int, rank: int, ranks: int) -> torch.Tensor:
    return tensor.chunk(ranks, dim)[rank]


def check(layer: torch.nn.Module, weight: torch.Tensor, bias: torch.Tensor | None, dtype: torch.dtype) -> None:
    """Hold the layer's product against the dequantised weight's, in float64, for few rows and for many."""
    method: Any = layer.quant_method
    for rows in (1, 17):
        x = torch.randn(rows, weight.shape[1]).to(dtype)
        y = method.apply(layer, x, None if bias is None else bias.to(dtype))
        assert y.dtype == dtype
        expected = x.double() @ weight.double().T
        size = x.double().abs() @ weight.double().abs().T
        if bias is not None:
            expected, size = expected + bias.double(), size + bias.double().abs()
        assert ((y.double() - expected).abs() <= HALF_ULP[dtype] * expected.abs() + ACCUMULATION * size).all()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("form", FORMS)
def test_every_class_of_layers_loads_every_format(form: str, kind: str) -> None:
    torch.manual_seed(0)
    made, layout = KINDS[kind], FORMS[form]
    for group, dtype in product(GROUPS, HALF_ULP):
        layer = made.make(quant_config=layout.config(group), params_dtype=dtype, prefix=PREFIX)
        weights = {
            part: random_weight(outputs, made.inputs, group, with_zeros(form)) for part, outputs in made.parts.items()
        }
        biases = {part: torch.randn(outputs).bfloat16() for part, outputs in made.parts.items()}
        for part, weight in weights.items():
            load(layer, layout.tensors(weight), part)
            load(layer, {"layer.bias": biases[part]}, part)
        loaded = [weakref.ref(parameter) for name, parameter in layer.named_parameters() if holds_weights(name)]
        assert len(loaded) >= 2
        layer.quant_method.process_weights_after_loading(layer)
        assert kernel_of(layer).__class__ is AerieInt4GemmLinearKernel
        assert not any(original() is not None for original in loaded)
        bias = torch.cat(list(biases.values())).to(dtype)
        assert isinstance(layer.bias, torch.Tensor)
        assert torch.equal(layer.bias, bias)
        check(layer, torch.cat([weight.dequantise() for weight in weights.values()]), bias, dtype)


@pytest.fixture
def ranks(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[int, int], None]]:
    """Make layers as a rank of a group of so many makes them."""

    def be(rank: int, of: int) -> None:
        monkeypatch.setattr(linear, "get_tensor_model_parallel_rank", lambda: rank)
        monkeypatch.setattr(linear, "get_tensor_model_parallel_world_size", lambda: of)

    yield be
    monkeypatch.undo()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("form", FORMS)
def test_every_rank_holds_its_share(ranks: Callable[[int, int], None], form: str, kind: str) -> None:
    torch.manual_seed(1)
    made, layout, of = KINDS[kind], FORMS[form], 2
    for group in GROUPS:
        if form == "awq" and group == CHANNEL and made.by_inputs:
            continue  # vLLM makes no parameter for the scales of such a share
        weights = {
            part: random_weight(outputs, made.inputs, group, with_zeros(form)) for part, outputs in made.parts.items()
        }
        for rank in range(of):
            ranks(rank, of)
            options = {"quant_config": layout.config(group), "params_dtype": torch.bfloat16, "prefix": PREFIX}
            layer = made.make(bias=False, **options)
            for part, weight in weights.items():
                load(layer, layout.tensors(weight), part)
            layer.quant_method.process_weights_after_loading(layer)
            held = [share(weight.dequantise(), int(made.by_inputs), rank, of) for weight in weights.values()]
            check(layer, torch.cat(held), None, torch.bfloat16)


@pytest.mark.parametrize("form", ["compressed-tensors with zero points", "gptq"])
def test_compiled_code_calls_the_operator_whole(form: str) -> None:
    """By its fake implementation, for any number of rows, as vLLM compiles a model."""
    torch.manual_seed(4)
    torch.compiler.reset()
    layout, weight = FORMS[form], random_weight(64, HIDDEN, 128, with_zeros(form))
    layer = ColumnParallelLinear(
        HIDDEN, 64, bias=False, quant_config=layout.config(128), params_dtype=torch.bfloat16, prefix=PREFIX
    )
    load(layer, layout.tensors(weight))
    layer.quant_method.process_weights_after_loading(layer)
    graphs: list[torch.fx.GraphModule] = []

    def backend(graph: torch.fx.GraphModule, _: object) -> Callable[..., Any]:
        graphs.append(graph)
        return graph.forward

    compiled = torch.compile(layer, fullgraph=True, backend=backend, dynamic=True)
    for rows in (2, 5, 40):
        x = torch.randn(rows, HIDDEN).bfloat16()
        assert torch.equal(compiled(x)[0], layer(x)[0])
    (graph,) = graphs
    assert [node.target for node in graph.graph.nodes if "int4_gemm" in str(node.target)] == [
        torch.ops.aerie.int4_gemm.default
    ]


@pytest.mark.parametrize("form", FORMS)
def test_an_lm_head_is_served_too(form: str) -> None:
    torch.manual_seed(2)
    layout, weight = FORMS[form], random_weight(VOCAB, HIDDEN, 128, with_zeros(form))
    with set_default_torch_dtype(torch.bfloat16):  # as vLLM makes a model: lm_head asks for its method before its dtype
        head = ParallelLMHead(VOCAB, HIDDEN, prefix="lm_head", quant_config=layout.config(128))
    load(head, layout.tensors(weight))
    head.quant_method.process_weights_after_loading(head)
    assert kernel_of(head).__class__ is AerieInt4GemmLinearKernel
    check(head, weight.dequantise(), None, torch.bfloat16)


@pytest.mark.parametrize("outputs", [40, 1000])
def test_layers_whose_sizes_fill_no_step_and_no_tile(outputs: int) -> None:
    torch.manual_seed(3)
    layout, weight = FORMS["compressed-tensors"], random_weight(outputs, 328, CHANNEL, with_zeros=False)
    layer = ColumnParallelLinear(
        328, outputs, bias=False, quant_config=layout.config(CHANNEL), params_dtype=torch.bfloat16, prefix=PREFIX
    )
    load(layer, layout.tensors(weight))
    layer.quant_method.process_weights_after_loading(layer)
    check(layer, weight.dequantise(), None, torch.bfloat16)


def test_the_next_kernel_serves_what_ours_does_not_take() -> None:
    layer = ColumnParallelLinear(
        HIDDEN, 64, quant_config=FORMS["awq"].config(32), params_dtype=torch.bfloat16, prefix=PREFIX
    )
    assert kernel_of(layer).__class__.__name__ == "AerieW4A16LinearKernel"


def with_zeros(form: str) -> bool:
    return "zero" in form or form == "awq"


def holds_weights(name: str) -> bool:
    return name not in ("bias", "weight_shape")


def kernel_of(layer: Any) -> object:  # noqa: ANN401 -- its method or its scheme has the kernel
    return layer.scheme.kernel if hasattr(layer, "scheme") else layer.quant_method.kernel


def test_what_marlin_does_not_take_is_opened_to_ours_on_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """For such AWQ layers vLLM has a method that asks no kernel, for such GPTQ layers an error."""
    options: dict[str, Any] = {"bias": False, "params_dtype": torch.bfloat16, "prefix": PREFIX}

    def without_kernels(config: Any, layer: object, prefix: str) -> object:  # noqa: ANN401 -- as vLLM's
        return AutoAWQLinearMethod(config)

    monkeypatch.setattr(AutoAWQConfig, "get_quant_method", without_kernels)
    for choice, method in (("aerie", "AerieAWQLinearMethod"), ("auto", "AutoAWQLinearMethod")):
        monkeypatch.setenv(CHOICE_VARIABLE, choice)
        layer = ColumnParallelLinear(HIDDEN, 64, quant_config=FORMS["awq"].config(192), **options)
        assert type(layer.quant_method).__name__ == method
    for form, group, refusal in (("gptq", 192, "group_size = 192"), ("gptq with zero points", 128, "no zero points")):
        monkeypatch.setenv(CHOICE_VARIABLE, "aerie")
        layer = ColumnParallelLinear(HIDDEN, 64, quant_config=FORMS[form].config(group), **options)
        assert type(layer.quant_method).__name__ == "AerieGPTQLinearMethod"
        for choice in ("auto", "vllm"):
            monkeypatch.setenv(CHOICE_VARIABLE, choice)
            with pytest.raises((NotImplementedError, ValueError), match=refusal):
                ColumnParallelLinear(HIDDEN, 64, quant_config=FORMS[form].config(group), **options)
