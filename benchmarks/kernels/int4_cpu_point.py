# SPDX-License-Identifier: Apache-2.0
"""Times the ways to compute one large linear layer side by side; prints JSON lines. Called by int4_cpu.py.

Weights are cold, as they are in a model that is larger than the caches: a buffer beyond the last-level cache is read
before each timed call. Rounds are interleaved: in each, every way is timed at every number of rows, and who goes first
changes.
"""

import json
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Annotated

import torch
import typer

from aerie.benchmarks.kernels.w4a16_cpu_sweep import GROUP_SIZE, Layer, stock
from aerie.benchmarks.points import Record
from aerie.benchmarks.serving.cpu_time import Bystanders
from aerie.kernels.w4a16_cpu import api

CALLS = 3
FLUSHED_CACHES = 4
CACHES = Path("/sys/devices/system/cpu/cpu0/cache")
Call = Callable[[], torch.Tensor]


def last_level_bytes(caches: Path = CACHES) -> int:
    """Size of the largest cache a core has; 32 MiB where the system does not tell."""
    sizes = [int(path.read_text().strip().removesuffix("K")) << 10 for path in caches.glob("index*/size")]
    return max(sizes, default=32 << 20)


class Plain:
    """Dequantise, then multiply, as plain PyTorch has it: two integers a byte become a bfloat16 weight at each call.

    In bfloat16 because that was faster here than in float32 at every number of rows.
    """

    def __init__(self, layer: Layer) -> None:
        n, k = layer.weight.shape
        self.scale_NG1 = layer.scale.unsqueeze(-1)
        grouped_NGS = layer.weight.view(n, k // GROUP_SIZE, GROUP_SIZE)
        q_NK = (grouped_NGS / self.scale_NG1.float()).round().add(8).to(torch.uint8).view(n, k)
        self.packed_NB = (q_NK[:, 1::2] << 4) | q_NK[:, ::2]

    def weight(self) -> torch.Tensor:
        """bfloat16 [N, K]."""
        q_NB2 = torch.stack((self.packed_NB & 0xF, self.packed_NB >> 4), dim=-1)
        q_NGS = q_NB2.view(self.scale_NG1.shape[0], -1, GROUP_SIZE).to(torch.bfloat16)
        return q_NGS.sub_(8).mul_(self.scale_NG1).flatten(start_dim=1)

    def __call__(self, x_MK: torch.Tensor) -> torch.Tensor:
        """The product x W^T for bfloat16 x."""
        return torch.nn.functional.linear(x_MK, self.weight())


def native(layer: Layer) -> Callable[[torch.Tensor], torch.Tensor] | None:
    """The kernel of vLLM itself, on bfloat16; None where this CPU has none."""
    try:
        kernel = stock(layer, torch.bfloat16)
        kernel(torch.zeros(1, layer.weight.shape[1], dtype=torch.bfloat16))
    except (AttributeError, NotImplementedError, RuntimeError):
        return None
    return kernel


class Ways:
    """What is timed of one layer, by name."""

    def __init__(self, layer: Layer) -> None:
        self.layer, self.plain, self.native = layer, Plain(layer), native(layer)

    def at(self, rows: int) -> list[tuple[str, Call]]:
        """The calls at a number of rows. Ours is handed float32 and casts, which the 16-bit ways are spared."""
        layer = self.layer
        x_MK = torch.randn(rows, layer.weight.shape[1])
        x_bfloat16, dense = x_MK.bfloat16(), layer.ways(x_MK)
        calls: list[tuple[str, Call]] = [
            ("ours", lambda: api.w4a16_linear(x_MK, layer.words_PB, layer.scales_GP2, len(layer.weight))),
            ("bfloat16", dense["bfloat16"]),
            ("float32", dense["float32"]),
            ("dequantise", partial(self.plain, x_bfloat16)),
        ]
        return calls if self.native is None else [*calls, ("stock", partial(self.native, x_bfloat16))]


def milliseconds(call: Call, flush: Callable[[], object]) -> float:
    """The least of a few calls, each on cold weights."""
    times = []
    for _ in range(CALLS):
        flush()
        start = time.perf_counter()
        call()
        times.append(time.perf_counter() - start)
    return round(min(times) * 1e3, 4)


def measure(outputs: int, inputs: int, row_counts: Sequence[int], rounds: int) -> Iterator[Record]:
    """One record for each round and number of rows, times in milliseconds."""
    ways = Ways(Layer(outputs, inputs))
    calls = {rows: ways.at(rows) for rows in row_counts}
    flushed = torch.ones(FLUSHED_CACHES * last_level_bytes() // 4)
    for _, call in (way for each in calls.values() for way in each):
        call()  # libraries compile and allocate at their first call
    for index in range(rounds):
        for rows, named in calls.items():
            first = index % len(named)
            others = Bystanders()
            times: Record = {name: milliseconds(call, flushed.sum) for name, call in named[first:] + named[:first]}
            where: Record = {"outputs": outputs, "inputs": inputs, "rows": rows, "round": index}
            yield where | times | {"cores_others": others.cores()}


def main(
    outputs: Annotated[int, typer.Argument(min=1)],
    inputs: Annotated[int, typer.Argument(min=1)],
    rounds: Annotated[int, typer.Argument(min=1)],
    threads: Annotated[int, typer.Argument(min=1)],
    rows: Annotated[list[int], typer.Argument(min=1)],
) -> None:
    """Print the records of one shape."""
    torch.manual_seed(0)
    torch.set_num_threads(threads)
    for record in measure(outputs, inputs, rows, rounds):
        print(json.dumps(record), flush=True)


if __name__ == "__main__":
    typer.run(main)
