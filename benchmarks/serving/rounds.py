# SPDX-License-Identifier: Apache-2.0
"""One round: one server under load while the other waits, with who used the processor."""

import time
from collections.abc import Sequence
from contextlib import AbstractContextManager, ExitStack
from pathlib import Path
from typing import Protocol

from pydantic import BaseModel, ConfigDict, JsonValue

from aerie.benchmarks.prompts import Prompt
from aerie.benchmarks.serving.cpu_time import busy_seconds
from aerie.benchmarks.serving.generator import Generator
from aerie.benchmarks.serving.load import LoadOptions, LoadReport, put_load
from aerie.benchmarks.serving.processes import Server

IDLE_WINDOW_S = 5.0


class Loaded(Protocol):
    """A server that load is put to."""

    @property
    def name(self) -> str: ...  # noqa: D102 - what it is called in a result
    @property
    def url(self) -> str: ...  # noqa: D102 - its base address, without a path
    def cpu_seconds(self) -> float | None:
        """CPU time used so far; `None` for a server that is not ours to look into."""
        ...

    def halted(self) -> AbstractContextManager[None]:
        """Keep it from running for a block, where it is ours."""
        ...


class Round(BaseModel):
    """What one server did in one round; CPU figures are cores kept busy, on average, while the round lasted.

    They are unknown for a server that was only named by its address.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    server: str
    index: int
    concurrency: int
    report: LoadReport
    cores_server: float | None
    cores_waiting: float
    """By the servers that are not under load."""
    cores_others: float | None
    """By everything that is neither server nor load generator: what disturbs the measurement."""

    def raw(self) -> dict[str, JsonValue]:
        """The round without the texts, flat."""
        values: dict[str, JsonValue] = self.model_dump(mode="json", exclude={"report"})
        return values | self.report.model_dump(mode="json", exclude={"texts"}, exclude_none=True)

    def summary(self) -> str:
        """One line for the terminal."""
        others = "" if self.cores_others is None else f"; others kept {self.cores_others:.2f} cores busy"
        return (
            f"round {self.index} c{self.concurrency} {self.server:9} {self.report.output_tokens_per_s:7.1f} tokens/s, "
            f"{self.report.output_tokens} tokens{others}"
        )


def idle_cores(server: Server, window_s: float = IDLE_WINDOW_S) -> float:
    """Cores a server keeps busy while nobody asks it anything."""
    before = server.cpu_seconds()
    time.sleep(window_s)
    return round((server.cpu_seconds() - before) / window_s, 4)


def measure_round(
    server: Loaded,
    waiting: Sequence[Loaded],
    index: int,
    prompts: Sequence[Prompt],
    options: LoadOptions,
    directory: Path,
    generator: Generator | None = None,
) -> Round:
    """Put the prompts to `server`, while those that wait are halted; the account spans the load generator's whole run.

    Idle servers would not do: for a second after a step, a worker of vLLM spins until another comes, on the core that
    each server's worker is bound to, and eight of them keep 0.12 cores busy after that, in short pieces.
    """
    with ExitStack() as stack:
        for one in waiting:
            stack.enter_context(one.halted())
        started, busy, own = time.monotonic(), busy_seconds(), server.cpu_seconds()
        idle = _together(waiting)
        report = put_load(server.url, prompts, options, directory, generator)
        elapsed, busy, idle = time.monotonic() - started, busy_seconds() - busy, _together(waiting) - idle
    used = None if own is None else (server.cpu_seconds() or own) - own
    return Round(
        server=server.name,
        index=index,
        concurrency=options.concurrency,
        report=report,
        cores_server=None if used is None else round(used / elapsed, 3),
        cores_waiting=round(idle / elapsed, 3),
        cores_others=None if used is None else round(max(0.0, busy - used - idle - report.client_cpu_s) / elapsed, 3),
    )


def _together(servers: Sequence[Loaded]) -> float:
    return sum(server.cpu_seconds() or 0.0 for server in servers)


def warm_up(
    servers: Sequence[Loaded],
    prompts: Sequence[Prompt],
    options: LoadOptions,
    directory: Path,
    generator: Generator | None = None,
) -> None:
    """A few requests to each server before anything counts: first-use allocations and tokenizer caches."""
    for server in servers:
        put_load(server.url, prompts[:2], options, directory / f"{server.name}-warm-up", generator)
