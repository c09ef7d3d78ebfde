# SPDX-License-Identifier: Apache-2.0
"""Times the ways to compute one linear layer on the instruction set this process runs on; prints JSON lines.

A process per instruction set, for torch chooses its own when it is imported (ATEN_CPU_CAPABILITY). The processor time
of one thread is measured, not the clock: it is the same on a machine that is busy with something else.
"""

import json
import time
from collections.abc import Callable, Iterator
from functools import partial

import torch

from aerie.kernels.w4a16_cpu import api, pack
from aerie.quant.formats.nibbles import pack as pack_words
from aerie.quant.weight import Int4Weight

SHAPES = ((512, 256), (2048, 1024), (4096, 4096))
ROWS = (1, 5, 8, 16, 40, 128, 256, 512)
VERIFICATION_ROWS = 5  # one request with four drafted tokens
GROUP_SIZE = 64
REPEATS, SLOW_REPEATS, SLOW_S = 15, 3, 0.05


def microseconds(call: Callable[[], torch.Tensor]) -> float:
    """The least processor time of a call."""
    best, left = float("inf"), REPEATS
    call()
    while left > 0:
        start = time.process_time()
        call()
        best = min(best, time.process_time() - start)
        left = min(left - 1, SLOW_REPEATS) if best > SLOW_S else left - 1
    return round(best * 1e6, 1)


class Layer:
    """One random layer in every form it is timed in."""

    def __init__(self, outputs: int, inputs: int) -> None:
        self.q = torch.randint(0, 16, (outputs, inputs), dtype=torch.uint8)
        self.scale = (torch.rand(outputs, inputs // GROUP_SIZE) * 0.01 + 0.001).bfloat16()
        self.words_PB = pack.pack_weight(self.q)
        self.scales_GP2 = pack.pack_scales(self.scale, inputs)
        self.weight = Int4Weight(self.q, self.scale).dequantise()
        self.weight_bfloat16 = self.weight.bfloat16()
        self.block = pack.block_rows()

    def error(self, x: torch.Tensor, y: torch.Tensor) -> float:
        """Frobenius norm of y - x W^T over that of x W^T, in float64 from the unrounded x."""
        exact = x.double() @ self.weight.double().T
        return float((y.double() - exact).norm() / exact.norm())

    def ways(self, x: torch.Tensor) -> dict[str, Callable[[], torch.Tensor]]:
        """The calls to time; x is float32 [M, K], which is what the engine would hand over."""
        x_bfloat16 = x.bfloat16()
        ways: dict[str, Callable[[], torch.Tensor]] = {
            "float32": lambda: torch.nn.functional.linear(x, self.weight),
            "bfloat16": lambda: torch.nn.functional.linear(x_bfloat16, self.weight_bfloat16),
            "few_rows": lambda: api.few_rows(x.bfloat16(), self.words_PB, self.scales_GP2).float(),
        }
        if (block := self.block) is not None:
            ways["many_rows"] = lambda: api.many_rows(x.bfloat16(), self.words_PB, self.scales_GP2, block).float()
        return ways


def stock(layer: Layer, dtype: torch.dtype) -> Callable[[torch.Tensor], torch.Tensor]:
    """The layer in vLLM's own CPU kernel.

    Raises:
        AttributeError: vLLM's extension for this instruction set has no such operator.
    """
    from vllm.model_executor.kernels.linear import CPUWNA16LinearKernel, MPLinearLayerConfig
    from vllm.scalar_type import scalar_types

    module = torch.nn.Module()
    module.register_parameter("bias", None)
    module.weight_packed = torch.nn.Parameter(pack_words(layer.q), requires_grad=False)
    module.weight_scale = torch.nn.Parameter(layer.scale.to(dtype), requires_grad=False)
    for name, value in (("input_dim", 1), ("packed_dim", 1)):
        setattr(module.weight_packed, name, value)
    setattr(module.weight_scale, "output_dim", 0)  # noqa: B010 (vLLM's parameters carry it; torch's type does not)
    outputs, inputs = layer.q.shape
    config = MPLinearLayerConfig(
        (inputs, outputs), (inputs, outputs), scalar_types.uint4b8, dtype, GROUP_SIZE, zero_points=False
    )
    kernel = CPUWNA16LinearKernel(config, "weight_packed", "weight_scale", "weight_zero_point")
    kernel.process_weights_after_loading(module)
    return lambda x: kernel.apply_weights(module, x)


def measure(isa: str) -> Iterator[dict[str, object]]:
    """One record a shape and number of rows, times in microseconds; vLLM's kernel where it has its operator."""
    for outputs, inputs in SHAPES:
        layer = Layer(outputs, inputs)
        native = stock(layer, torch.bfloat16) if isa == "AVX512" else None
        for rows in ROWS:
            x = torch.randn(rows, inputs)
            record: dict[str, object] = {"isa": isa, "outputs": outputs, "inputs": inputs, "rows": rows}
            record |= {name: microseconds(call) for name, call in layer.ways(x).items()}
            if native is not None:
                record["vllm_bfloat16"] = microseconds(partial(native, x.bfloat16()))
            if rows == VERIFICATION_ROWS:
                record["few_rows_error"] = layer.error(x, layer.ways(x)["few_rows"]())
                if native is not None:
                    record["vllm_bfloat16_error"] = layer.error(x, native(x.bfloat16()))
            yield record


def stock_float32() -> str:
    """What vLLM's kernel says to float32 activations."""
    layer = Layer(*SHAPES[0])
    try:
        stock(layer, torch.float32)(torch.randn(1, SHAPES[0][1]))
    except (AttributeError, NotImplementedError, RuntimeError) as error:
        return f"{type(error).__name__}: {error}".splitlines()[0]
    return "runs"


def main() -> None:
    """Print the records of this process's instruction set, then vLLM's answer to float32."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    isa = torch.backends.cpu.get_cpu_capability()
    for record in measure(isa):
        print(json.dumps(record), flush=True)
    if isa == "AVX512":
        print(json.dumps({"isa": isa, "vllm_float32": stock_float32()}), flush=True)


if __name__ == "__main__":
    main()
