# SPDX-License-Identifier: Apache-2.0
"""Output tokens per second and memory of an INT4 model against its BF16 twin, in vLLM on a CPU.

Four engines, {INT4, BF16 checkpoint} x {float32, bfloat16}, each in a process of its own and loaded at once; rounds
alternate between them. `aerie serve` takes float32 on a CPU (server/plan.py): its figures carry no dtype in their
names.

`e2e_ratio_cN`: INT4's tokens per second over BF16's at N requests in flight; `e2e_ratio_best_cN` lets each side choose
its faster dtype. `memory_ratio`: parameters in memory, INT4's over BF16's; `rss_ratio`: the processes' resident memory
after loading.
"""

import functools
import json
import os
import statistics
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from aerie.benchmarks.errors import BenchmarkError
from aerie.benchmarks.points import Points, Record, number
from aerie.benchmarks.serving.int4_model import Models, Shape, models
from aerie.benchmarks.serving.processes import ServerError, ended_in_order, tail

CHILD = "aerie.benchmarks.serving.int4_engine_child"
LEVELS = (1, 8)
WEIGHTS = ("int4", "bf16")
DTYPES = ("float32", "bfloat16")
SERVED_DTYPE = "float32"
MIB = 1 << 20


@dataclass(frozen=True)
class EngineSettings:
    """How the engines are measured."""

    rounds: int
    threads: int
    max_tokens: int
    seed: int


class Engine:
    """A running engine; made by `running_engine`."""

    def __init__(self, weights: str, dtype: str, process: subprocess.Popen[bytes], log: Path) -> None:
        self.side: Record = {"weights": weights, "dtype": dtype}
        self.process, self.log = process, log
        self.loaded: Record = self.side | self._answer()

    def _answer(self) -> Record:
        line = self.process.stdout.readline() if self.process.stdout else b""
        if not line:
            raise ServerError(f"the engine of {self.side} ended:\n{tail(self.log)}")
        answer: Record = json.loads(line)
        return answer

    def measure(self, job: Record) -> Record:
        """Put `job` to the engine and wait for its account. Raises ServerError."""
        # Where it has ended, there is no answer either, and that says why.
        with suppress(BrokenPipeError):
            if self.process.stdin is not None:
                self.process.stdin.write(json.dumps(job).encode() + b"\n")
                self.process.stdin.flush()
        return self.side | self._answer()


@contextmanager
def running_engine(made: Models, weights: str, dtype: str, settings: EngineSettings, log: Path) -> Iterator[Engine]:
    """Start an engine in a session of its own, and leave nothing behind; raises ServerError."""
    model = made.int4 if weights == "int4" else made.bf16
    words = map(str, (model, dtype, settings.max_tokens, *LEVELS))
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("wb") as output:

        def start() -> subprocess.Popen[bytes]:
            return subprocess.Popen(
                [sys.executable, "-P", "-m", CHILD, *words],
                env=os.environ | {"OMP_NUM_THREADS": str(settings.threads)},
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=output,
                start_new_session=True,
            )

        with ended_in_order(start) as process:
            try:
                yield Engine(weights, dtype, process, log)
            finally:
                with suppress(BrokenPipeError):
                    if process.stdin is not None:
                        process.stdin.close()  # an idle engine ends by itself


def measure_round(
    engines: Callable[[], list[Engine]], settings: EngineSettings, level: int, index: int
) -> list[Record]:
    """Every engine on the same requests, one after another; who goes first changes from round to round."""
    job: Record = {"concurrency": level, "max_tokens": settings.max_tokens, "seed": f"{settings.seed}/{level}/{index}"}
    running = engines()
    first = index % len(running)
    where: Record = {"concurrency": level, "round": index}
    return [where | engine.measure(job) for engine in running[first:] + running[:first]]


def engine_records(shape: Shape, settings: EngineSettings, points: Points) -> list[Record]:
    """What each engine holds, and all rounds at every concurrency; engines are started if a point is missing."""
    with ExitStack() as stack:

        @functools.cache
        def made() -> Models:
            return models(points.folder, shape, settings.seed)

        @functools.cache
        def engines() -> list[Engine]:
            return [
                stack.enter_context(
                    running_engine(made(), weights, dtype, settings, points.folder / f"{weights}-{dtype}.log")
                )
                for weights in WEIGHTS
                for dtype in DTYPES
            ]

        def memory() -> list[Record]:
            return [
                one.loaded
                | {"parameter_bytes": made().parameter_bytes(str(one.side["weights"]), str(one.side["dtype"]))}
                for one in engines()
            ]

        records = points.kept("engines", memory)
        for index in range(settings.rounds):
            for level in LEVELS:
                round_ = functools.partial(measure_round, engines, settings, level, index)
                records = records + points.kept(f"engines-c{level}-{index}", round_)
    return records


def _suffix(dtype: str) -> str:
    return "" if dtype == SERVED_DTYPE else f"_{dtype}"


def memory_figures(records: Sequence[Record]) -> dict[str, float]:
    """Ratios and sizes from what each engine held after loading."""
    held = {(one["weights"], one["dtype"]): one for one in records if "rss_bytes" in one}
    figures: dict[str, float] = {}
    for dtype in DTYPES:
        int4, bf16 = held["int4", dtype], held["bf16", dtype]
        for name, field in (("memory_ratio", "parameter_bytes"), ("rss_ratio", "rss_bytes")):
            figures[name + _suffix(dtype)] = number(int4, field) / number(bf16, field)
        for weights in WEIGHTS:
            one = held[weights, dtype]
            figures[f"parameter_mib_{weights}_{dtype}"] = number(one, "parameter_bytes") / MIB
            figures[f"rss_mib_{weights}_{dtype}"] = number(one, "rss_bytes") / MIB
    return figures


def _rounds(records: Sequence[Record], weights: str, dtype: str, level: int) -> list[Record]:
    """One engine's rounds at one concurrency, in order."""
    side = (weights, dtype, level)
    mine = [one for one in records if (one.get("weights"), one.get("dtype"), one.get("concurrency")) == side]
    return sorted(mine, key=lambda one: number(one, "round"))


def _rate(rounds: Sequence[Record]) -> float:
    """Output tokens per second, pooled."""
    return sum(number(one, "output_tokens") for one in rounds) / sum(number(one, "seconds") for one in rounds)


def speed_figures(records: Sequence[Record], level: int) -> dict[str, float]:
    """Ratios at one concurrency pooled over rounds, and over single rounds their spread; raises BenchmarkError."""
    sides = {(weights, dtype): _rounds(records, weights, dtype, level) for weights in WEIGHTS for dtype in DTYPES}
    indices = {tuple(number(one, "round") for one in rounds) for rounds in sides.values()}
    if len(indices) != 1 or len(indices.pop()) < 2:
        raise BenchmarkError(f"concurrency {level}: every engine must be measured in the same rounds, at least two")
    pooled = {side: _rate(rounds) for side, rounds in sides.items()}
    figures: dict[str, float] = {}
    for dtype in DTYPES:
        pairs = zip(sides["int4", dtype], sides["bf16", dtype], strict=True)
        ratios = [_rate([one]) / _rate([other]) for one, other in pairs]
        name = f"e2e_ratio{_suffix(dtype)}_c{level}"
        figures[name] = pooled["int4", dtype] / pooled["bf16", dtype]
        figures |= {f"{name}_std": statistics.stdev(ratios), f"{name}_min": min(ratios)}
    best = {weights: max(pooled[weights, dtype] for dtype in DTYPES) for weights in WEIGHTS}
    figures[f"e2e_ratio_best_c{level}"] = best["int4"] / best["bf16"]
    return figures | {f"e2e_tokens_per_s_{weights}_{dtype}_c{level}": rate for (weights, dtype), rate in pooled.items()}


def engine_figures(records: Sequence[Record]) -> dict[str, float]:
    """All figures of the served models."""
    figures = memory_figures(records)
    for level in LEVELS:
        figures |= speed_figures(records, level)
    return {name: round(value, 4) for name, value in figures.items()}
