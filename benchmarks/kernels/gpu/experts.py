# SPDX-License-Identifier: Apache-2.0
"""A mixture of experts: ours beside vLLM's Marlin, right first and then timed. Records as in linear.py.

Shape suffixes: M tokens, H hidden size, A experts a token chooses, I inner size.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import silu

from aerie.benchmarks.kernels.gpu import peers, ways
from aerie.benchmarks.kernels.gpu.linear import OURS, build_all, judged, timed
from aerie.benchmarks.kernels.gpu.shapes import GROUP_SIZE, Experts, Shape
from aerie.benchmarks.kernels.gpu.ways import Way, Weight
from aerie.benchmarks.kernels.timing import Budget, Timer
from aerie.benchmarks.points import Record
from aerie.kernels.int4_gemm.pack import pack
from aerie.kernels.int4_moe.api import int4_moe
from aerie.kernels.int4_moe.pack import stack


class Layer(NamedTuple):
    """Random experts: of each the weight of gate over up, and that of down."""

    gate_up: list[Weight]
    down: list[Weight]

    @classmethod
    def random(cls, sizes: Experts, dtype: torch.dtype, device: str) -> "Layer":
        """Outputs of about the size of inputs."""
        shapes = Shape(sizes.hidden, 2 * sizes.inner), Shape(sizes.inner, sizes.hidden)
        return cls(*([Weight.random(shape, dtype, device) for _ in range(sizes.experts)] for shape in shapes))

    def exact(self, x_MH: Tensor, weights_MA: Tensor, ids_MA: Tensor) -> Tensor:
        """The layer's output in float64, one expert after another."""
        y_MH = torch.zeros_like(x_MH, dtype=torch.float64)
        for expert in ids_MA.unique().tolist():
            tokens, choices = (ids_MA == expert).nonzero(as_tuple=True)
            gate, up = self.gate_up[expert].exact(x_MH[tokens]).chunk(2, dim=-1)
            chosen = self.down[expert].exact(silu(gate) * up)
            y_MH.index_add_(0, tokens, chosen * weights_MA[tokens, choices].double().unsqueeze(-1))
        return y_MH


def routed(sizes: Experts, tokens: int, dtype: torch.dtype, device: str) -> tuple[Tensor, Tensor, Tensor]:
    """Activations [M, H], and for each token distinct experts by chance with weights that add up to 1, both [M, A]."""
    x_MH = torch.randn(tokens, sizes.hidden, dtype=dtype, device=device)
    ids_MA = torch.rand(tokens, sizes.experts, device=device).topk(sizes.chosen, dim=-1).indices.to(torch.int32)
    weights_MA = torch.rand(tokens, sizes.chosen, device=device).softmax(-1)
    return x_MH, weights_MA, ids_MA


def ours(layer: Layer) -> Way:
    """`int4_moe`, cut as the table of this GPU says."""
    gate_up, down = (
        stack(pack(one.q_NK, one.scale_NG, group_size=GROUP_SIZE, gate_up=fused) for one in weights)
        for weights, fused in ((layer.gate_up, True), (layer.down, False))
    )

    def call(x_MH: Tensor, weights_MA: Tensor, ids_MA: Tensor, *tensors: Tensor) -> Tensor:
        words1, tables1, words2, tables2 = tensors
        first = gate_up._replace(words_ETNW=words1, tables_ETRN=tables1)
        return int4_moe(x_MH, weights_MA, ids_MA, first, down._replace(words_ETNW=words2, tables_ETRN=tables2))

    return Way((gate_up.words_ETNW, gate_up.tables_ETRN, down.words_ETNW, down.tables_ETRN), call)


def marlin(layer: Layer) -> Way:
    """Marlin's experts, called as vLLM calls them; raises PeerError."""
    ops = peers.operators("gptq_marlin_repack")
    peers.operators("moe_wna16_marlin_gemm", library="_moe_C")
    fused = peers.first_there(*peers.MARLIN_MOE).fused_marlin_moe
    device = layer.down[0].q_NK.device
    halves = (zip(*(peers.marlin_weight(ops, *one) for one in weights), strict=True) for weights in layer)
    words1, scales1, words2, scales2 = (torch.stack(one) for half in halves for one in half)
    fixed = {
        **peers.no_order(device),
        **dict.fromkeys(("bias1", "bias2", "gating_output")),
        "quant_type_id": peers.uint4b8().id,
    }

    def call(x_MH: Tensor, weights_MA: Tensor, ids_MA: Tensor, *tensors: Tensor) -> Tensor:
        given = {"hidden_states": x_MH, "topk_weights": weights_MA, "topk_ids": ids_MA}
        layout = dict(zip(("w1", "w1_scale", "w2", "w2_scale", "workspace"), tensors, strict=True))
        y_MH: Tensor = peers.fitted(fused, {**fixed, **given, **layout})
        return y_MH

    return Way((words1, scales1, words2, scales2, peers.locks(device)), call)


Build = Callable[[Layer], Way]
BUILDS: Mapping[str, Build] = {OURS: ours, "marlin": marlin}


def check(
    sizes: Experts, rows: Sequence[int], dtype: torch.dtype, device: str, builds: Mapping[str, Build] = BUILDS
) -> Iterator[Record]:
    """As `linear.check`."""
    layer = Layer.random(sizes, dtype, device)
    inputs = routed(sizes, max(rows), dtype, device)
    exact_MH = layer.exact(*inputs)
    for name, build in builds.items():
        yield from judged(sizes.name, name, dtype, rows, partial(build, layer), inputs, exact_MH)


class Prepared:
    """A layer in copies, as `linear.Prepared`; each copy gets tokens that are routed anew."""

    def __init__(self, sizes: Experts, builds: Mapping[str, Build], device: str, free: int) -> None:
        self.sizes, self.device = sizes, device
        layer = Layer.random(sizes, torch.bfloat16, device)
        built, self.refused = build_all(sizes.name, layer, builds)
        del layer
        self.count = ways.copies_that_fit(sum(way.bytes for way in built.values()), free)
        if not self.count:
            raise MemoryError("memory has no room for a copy")
        self.copies = {name: list(way.copies(self.count)) for name, way in built.items()}

    def time(self, rows: int, timer: Timer, rounds: int, budget: Budget | None) -> list[Record]:
        """A record of each way; the bytes are those of the experts that were chosen, on average over copies."""
        inputs = [routed(self.sizes, rows, torch.bfloat16, self.device) for _ in range(ways.COPIES)]
        used = sum(len(ids_MA.unique()) for _, _, ids_MA in inputs) / len(inputs)
        calls = {
            name: [partial(copies[at % self.count], *given) for at, given in enumerate(inputs)]
            for name, copies in self.copies.items()
        }
        point: Record = {"case": self.sizes.name, "rows": rows, "copies": self.count, "used": used}
        return timed(point | {"bytes": self.sizes.moved_bytes(rows, used)}, calls, timer, rounds, budget)
