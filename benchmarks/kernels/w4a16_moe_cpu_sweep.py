# SPDX-License-Identifier: Apache-2.0
"""Times the ways to compute one layer of experts on the instruction set this process runs on; prints JSON lines.

A process per instruction set and processor time, as in w4a16_cpu_sweep.
"""

import json
from collections.abc import Callable, Iterator
from functools import partial
from types import MappingProxyType

import torch

from aerie.benchmarks.kernels.w4a16_cpu_sweep import microseconds
from aerie.kernels.w4a16_cpu.reference import dequantise
from aerie.kernels.w4a16_moe_cpu import api, reference
from aerie.kernels.w4a16_moe_cpu.pack import PackedExperts, pack_experts

SHAPES = ((512, 256), (2048, 768))
"""Hidden and inner size; the second is Qwen3-30B-A3B's."""
EXPERTS, CHOSEN, GROUP_SIZE = 16, 4, 64
TOKENS = (1, 5, 16, 128, 512)
VERIFICATION_TOKENS = 5  # one request with four drafted tokens


class Layer:
    """Random experts in every form they are timed in."""

    def __init__(self, hidden: int, inner: int) -> None:
        gate_up, down = self.weights(2 * inner, hidden), self.weights(hidden, inner)
        self.packed = PackedExperts(*pack_experts(gate_up), *pack_experts(down))
        self.gate_up = torch.stack([dequantise(q, scale).float() for q, scale, _ in gate_up])
        self.down = torch.stack([dequantise(q, scale).float() for q, scale, _ in down])

    @staticmethod
    def weights(outputs: int, inputs: int) -> list[tuple[torch.Tensor, torch.Tensor, None]]:
        """Integers and scales of each expert, without zero points."""
        return [
            (
                torch.randint(0, 16, (outputs, inputs), dtype=torch.uint8),
                (torch.rand(outputs, inputs // GROUP_SIZE) * 0.01 + 0.001).bfloat16(),
                None,
            )
            for _ in range(EXPERTS)
        ]

    def dense(self, x: torch.Tensor, weights: torch.Tensor, ids: torch.Tensor) -> torch.Tensor:
        """The experts in float32, one after another."""
        y = torch.zeros_like(x)
        for expert in ids.unique().tolist():
            tokens, choices = (ids == expert).nonzero(as_tuple=True)
            gate, up = torch.nn.functional.linear(x[tokens], self.gate_up[expert]).chunk(2, dim=-1)
            chosen = torch.nn.functional.linear(torch.nn.functional.silu(gate) * up, self.down[expert])
            y.index_add_(0, tokens, chosen * weights[tokens, choices].unsqueeze(-1))
        return y


def stock(layer: Layer) -> Callable[[torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor]:
    """Unquantised experts in vLLM's own operator, without AMX."""
    from vllm._custom_ops import cpu_fused_moe, cpu_prepack_moe_weight
    from vllm.platforms import current_platform

    current_platform.import_kernels()
    gate_up, down = (cpu_prepack_moe_weight(weight, "vec") for weight in (layer.gate_up, layer.down))

    def call(x: torch.Tensor, weights: torch.Tensor, ids: torch.Tensor) -> torch.Tensor:
        y = torch.empty_like(x)
        cpu_fused_moe(y, x, gate_up, down, None, None, weights, ids, "silu", "vec")
        return y

    return call


def error(layer: Layer) -> float:
    """Frobenius norm of y - exact over that of exact, in float64, at the tokens of a verification step."""
    x, weights, ids = routed(VERIFICATION_TOKENS, layer.down.shape[1])
    used, compact = ids.unique(return_inverse=True)
    double = layer.gate_up[used].double(), layer.down[used].double()
    exact = reference.w4a16_moe(x, *double, weights, compact)
    return float((api.w4a16_moe(x, layer.packed, weights, ids).double() - exact).norm() / exact.norm())


def routed(tokens: int, hidden: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Activations, routing weights and distinct experts of some tokens."""
    ids = torch.stack([torch.randperm(EXPERTS)[:CHOSEN] for _ in range(tokens)]).to(torch.int32)
    return torch.randn(tokens, hidden), torch.rand(tokens, CHOSEN).softmax(-1), ids


def measure(isa: str) -> Iterator[dict[str, object]]:
    """One record a shape and number of tokens, times in microseconds."""
    for hidden, inner in SHAPES:
        layer = Layer(hidden, inner)
        native, wrong = stock(layer), error(layer)
        for tokens in TOKENS:
            x, weights, ids = routed(tokens, hidden)
            record: dict[str, object] = {"isa": isa, "hidden": hidden, "inner": inner, "tokens": tokens}
            record["int4"] = microseconds(partial(api.w4a16_moe, x, layer.packed, weights, ids))
            record["float32"] = microseconds(partial(layer.dense, x, weights, ids))
            record["vllm_float32"] = microseconds(partial(native, x, weights, ids))
            yield record | {"error": wrong}


def limit_vllm() -> None:
    """Have vLLM load its extension for AVX2: it asks this mapping, and not what torch is limited to."""
    found = dict(torch.cpu.get_capabilities())
    lacking = {name: False for name in found if name.startswith(("avx512", "amx", "avx10"))}
    limited = MappingProxyType(found | lacking)
    setattr(torch.cpu, "get_capabilities", lambda: limited)  # noqa: B010 (its type is that of a cached function)


def main() -> None:
    """Print the records of this process's instruction set."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    isa = torch.backends.cpu.get_cpu_capability()
    if isa == "AVX2":
        limit_vllm()
    for record in measure(isa):
        print(json.dumps(record), flush=True)


if __name__ == "__main__":
    main()
