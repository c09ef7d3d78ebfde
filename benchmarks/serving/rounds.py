# SPDX-License-Identifier: Apache-2.0
"""One round: one server under load while the other waits, with who used the processor."""

import time
from collections.abc import Sequence
from pathlib import Path

from pydantic import BaseModel, ConfigDict, JsonValue

from aerie.benchmarks.prompts import Prompt
from aerie.benchmarks.serving.cpu_time import busy_seconds
from aerie.benchmarks.serving.load import LoadOptions, LoadReport, put_load
from aerie.benchmarks.serving.processes import Server

IDLE_WINDOW_S = 5.0


class Round(BaseModel):
    """What one server did in one round; CPU figures are cores kept busy, on average, while the round lasted."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    server: str
    index: int
    concurrency: int
    report: LoadReport
    cores_server: float
    cores_waiting: float
    """By the server that is not under load."""
    cores_others: float
    """By everything that is neither server nor load generator: what disturbs the measurement."""

    def raw(self) -> dict[str, JsonValue]:
        """The round without the texts, flat."""
        values: dict[str, JsonValue] = self.model_dump(mode="json", exclude={"report"})
        return values | self.report.model_dump(mode="json", exclude={"texts"}, exclude_none=True)

    def summary(self) -> str:
        """One line for the terminal."""
        return (
            f"round {self.index} c{self.concurrency} {self.server:9} {self.report.output_tokens_per_s:7.1f} tokens/s, "
            f"{self.report.output_tokens} tokens; others kept {self.cores_others:.2f} cores busy"
        )


def idle_cores(server: Server, window_s: float = IDLE_WINDOW_S) -> float:
    """Cores a server keeps busy while nobody asks it anything."""
    before = server.cpu_seconds()
    time.sleep(window_s)
    return round((server.cpu_seconds() - before) / window_s, 4)


def measure_round(
    server: Server,
    waiting: Sequence[Server],
    index: int,
    prompts: Sequence[Prompt],
    options: LoadOptions,
    directory: Path,
) -> Round:
    """Put the prompts to `server`; the account spans the load generator's whole life, its start-up included."""
    started, busy, own = time.monotonic(), busy_seconds(), server.cpu_seconds()
    idle = sum(other.cpu_seconds() for other in waiting)
    report = put_load(server.url, prompts, options, directory)
    elapsed, busy, own = time.monotonic() - started, busy_seconds() - busy, server.cpu_seconds() - own
    idle = sum(other.cpu_seconds() for other in waiting) - idle
    return Round(
        server=server.name,
        index=index,
        concurrency=options.concurrency,
        report=report,
        cores_server=round(own / elapsed, 3),
        cores_waiting=round(idle / elapsed, 3),
        cores_others=round(max(0.0, busy - own - idle - report.client_cpu_s) / elapsed, 3),
    )


def warm_up(servers: Sequence[Server], prompts: Sequence[Prompt], options: LoadOptions, directory: Path) -> None:
    """A few requests to each server before anything counts: first-use allocations and tokenizer caches."""
    for server in servers:
        put_load(server.url, prompts[:2], options, directory / f"{server.name}-warm-up")
