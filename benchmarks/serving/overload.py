# SPDX-License-Identifier: Apache-2.0
"""What `aerie serve` does with twenty times the requests that it can answer.

`python -m aerie.benchmarks.serving.overload --out FILE`. One server: at capacity (as many requests in flight as the
engine works on at once, each followed by the next), then twice overload (requests at random times, `factor` times as
many a second as were answered at capacity, whether or not earlier ones were) and capacity again.

Figures: `p99_ratio_accepted`, the 99th percentile of the accepted requests' time under overload over that at capacity;
`reject_p99_ms`, of the refusals'; `recovery_s`, seconds after an overload until a window of three answers as many
requests as at capacity (nine tenths of them), the longer of both; `lost`, requests that ended in neither an answer nor
a refusal with `Retry-After`; `memory_growth_mib_P` and `..._P_second`, what process P (`front`, `engine`, `worker`) of
the idle server holds more after each round than before it.
"""

import asyncio
import random
import statistics
import tempfile
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import asdict, dataclass
from itertools import cycle
from pathlib import Path
from typing import Annotated, Literal

import httpx
import typer
from pydantic import JsonValue

from aerie.benchmarks import options
from aerie.benchmarks.errors import BenchmarkError
from aerie.benchmarks.prompts import held_out, render
from aerie.benchmarks.results_file import Provenance, ResultFile, Run
from aerie.benchmarks.serving.gauges import until_idle
from aerie.benchmarks.serving.processes import Server, aerie_server
from aerie.benchmarks.serving.usage import OTHERS, Usage, usage
from aerie.benchmarks.serving.warm_up import fill_caches

NAME = "serving.overload"
MODEL = "demo"
TIMEOUT_S = 300.0
WINDOW_S = 3.0
RECOVERED = 0.9
ROUNDS = 2
"""The second tells what the first one's growth was: something used for the first time, or a leak."""
REFUSALS = (429, 503)
Outcome = Literal["answered", "refused", "lost"]


@dataclass(frozen=True)
class Exchange:
    """One request: when it was sent, how long it took, how it ended."""

    began_s: float
    seconds: float
    outcome: Outcome


@dataclass(frozen=True)
class Round:
    """An overload and the capacity after it; times are on one clock."""

    overload: list[Exchange]
    after: list[Exchange]
    overload_ended_s: float
    held: dict[str, Usage]
    """What the idle server's processes hold after it."""


@dataclass(frozen=True)
class Phases:
    """What was measured."""

    before: list[Exchange]
    held: dict[str, Usage]
    """Before the first overload."""
    rounds: list[Round]


@dataclass(frozen=True)
class Load:
    """How long the phases take, and how long an answer may be."""

    max_tokens: int
    capacity_s: float
    overload_s: float


class Client:
    """Sends completions and notes how they end."""

    def __init__(self, http: httpx.AsyncClient, prompts: Sequence[str], max_tokens: int) -> None:
        self._http = http
        self._prompts = cycle(prompts)
        self._max_tokens = max_tokens

    async def ask(self) -> Exchange:
        """One request."""
        body = {"model": MODEL, "prompt": next(self._prompts), "max_tokens": self._max_tokens, "temperature": 0}
        began = time.monotonic()
        try:
            answer = await self._http.post("/v1/completions", json=body)
        except httpx.TransportError:
            return Exchange(began, time.monotonic() - began, "lost")
        refused = answer.status_code in REFUSALS and "retry-after" in answer.headers
        outcome: Outcome = "answered" if answer.status_code == 200 else "refused" if refused else "lost"
        return Exchange(began, time.monotonic() - began, outcome)

    async def at_capacity(self, concurrency: int, seconds: float) -> list[Exchange]:
        """`concurrency` in flight for a while; those that are then are waited for."""
        deadline, done = time.monotonic() + seconds, list[Exchange]()

        async def one_after_another() -> None:
            while time.monotonic() < deadline:
                done.append(await self.ask())

        await asyncio.gather(*(one_after_another() for _ in range(concurrency)))
        return done

    async def at_rate(self, per_second: float, seconds: float, rng: random.Random) -> list[Exchange]:
        """A Poisson process, which waits for nothing; all are waited for at the end."""
        deadline, asked = time.monotonic() + seconds, list[asyncio.Task[Exchange]]()
        due = time.monotonic()
        while due < deadline:
            await asyncio.sleep(max(0.0, due - time.monotonic()))
            asked.append(asyncio.create_task(self.ask()))
            due += rng.expovariate(per_second)
        return list(await asyncio.gather(*asked))


def rate(exchanges: Sequence[Exchange]) -> float:
    """Answers a second, from the first request to the last answer."""
    answered = [one for one in exchanges if one.outcome == "answered"]
    if not answered:
        raise BenchmarkError("no request was answered")
    return len(answered) / (max(one.began_s + one.seconds for one in answered) - min(one.began_s for one in answered))


def recovery(after: Sequence[Exchange], ended_s: float, wanted: float) -> float:
    """Seconds from `ended_s` to the start of the first window with `wanted` answers a second; inf without one."""
    finished = sorted(one.began_s + one.seconds for one in after if one.outcome == "answered")
    starts = [ended_s, *(time_s for time_s in finished if time_s > ended_s)]
    for start in starts:
        if sum(start <= time_s < start + WINDOW_S for time_s in finished) >= wanted * WINDOW_S:
            return start - ended_s
    return float("inf")


def percentile(exchanges: Sequence[Exchange], outcome: Outcome) -> float:
    """The 99th percentile of the seconds of those that ended so; 0 without two of them."""
    seconds = [one.seconds for one in exchanges if one.outcome == outcome]
    return statistics.quantiles(seconds, n=100, method="inclusive")[98] if len(seconds) > 1 else 0.0


def figures(phases: Phases) -> dict[str, float]:
    """As the module's text defines them."""
    capacity = rate(phases.before)
    overload = [one for each in phases.rounds for one in each.overload]
    everything = [*phases.before, *overload, *(one for each in phases.rounds for one in each.after)]
    found = {
        "p99_ratio_accepted": percentile(overload, "answered") / percentile(phases.before, "answered"),
        "reject_p99_ms": 1000 * percentile(overload, "refused"),
        "recovery_s": max(
            recovery([*each.overload, *each.after], each.overload_ended_s, RECOVERED * capacity)
            for each in phases.rounds
        ),
        "lost": sum(one.outcome == "lost" for one in everything),
        "requests_per_s_capacity": capacity,
        "requests_overload": len(overload),
        "refused_overload": sum(one.outcome == "refused" for one in overload),
        "p99_s_capacity": percentile(phases.before, "answered"),
        **growth([phases.held, *(each.held for each in phases.rounds)]),
    }
    return {name: float(f"{value:.5g}") for name, value in found.items()}


def growth(held: Sequence[dict[str, Usage]]) -> dict[str, float]:
    """Memory by process, at first and what each round added."""
    found: dict[str, float] = {}
    for process in (name for name in held[0] if name != OTHERS):
        first, *later = (each[process].memory_mib for each in held)
        found[f"memory_mib_{process}"] = first
        for before, after, suffix in zip([first, *later], later, ("", "_second"), strict=False):
            found[f"memory_growth_mib_{process}{suffix}"] = after - before
    return found


@asynccontextmanager
async def client(server: Server, prompts: Sequence[str], max_tokens: int) -> AsyncIterator[Client]:
    """A client without a limit of connections of its own."""
    limits = httpx.Limits(max_connections=None, max_keepalive_connections=64)
    async with httpx.AsyncClient(base_url=server.url, timeout=TIMEOUT_S, limits=limits, trust_env=False) as http:
        yield Client(http, prompts, max_tokens)


async def measure(
    server: Server, prompts: Sequence[str], load: Load, seats: int, factor: float, rng: random.Random
) -> Phases:
    """All phases, after a warm-up that does not count."""
    async with client(server, prompts, load.max_tokens) as asking:
        await asking.at_capacity(seats, WINDOW_S)
        before = await asking.at_capacity(seats, load.capacity_s)
        phases = Phases(before, await held_when_idle(server), [])
        typer.echo(f"capacity: {rate(before):.2f} requests/s")
        for _ in range(ROUNDS):
            overload = asyncio.create_task(asking.at_rate(factor * rate(before), load.overload_s, rng))
            await asyncio.sleep(load.overload_s)
            ended = time.monotonic()
            after = await asking.at_capacity(seats, load.capacity_s)
            phases.rounds.append(Round(await overload, after, ended, await held_when_idle(server)))
        return phases


async def held_when_idle(server: Server) -> dict[str, Usage]:
    """What the processes hold that is for no request."""
    await until_idle(server, TIMEOUT_S)
    return usage(server)


def _rows(exchanges: Sequence[Exchange]) -> list[JsonValue]:
    """For a result file: when each began, how long it took (seconds), how it ended."""
    return [f"{one.began_s:.3f} {one.seconds:.4f} {one.outcome}" for one in exchanges]


def runs(phases: Phases) -> list[Run]:
    """Every phase, and what the processes held after it; a second round has the first one's names."""
    told = [("before", phases.before, phases.held)]
    for each in phases.rounds:
        told += [("overload", each.overload, {}), ("after", each.after, each.held)]
    return [
        Run(
            benchmark=NAME,
            measured={
                "phase": phase,
                "exchanges": _rows(exchanges),
                "held": {name: asdict(one) for name, one in held.items()},
            },
        )
        for phase, exchanges, held in told
    ]


def main(
    out: options.Out,
    model: options.Model = options.DEMO_MODEL,
    draft: options.Draft = options.DEMO_DRAFT,
    seats: Annotated[int, typer.Option(min=1, help="Requests that the engine works on at once.")] = 16,
    queue: Annotated[int, typer.Option(min=1, help="Requests that may wait beyond them.")] = 8,
    factor: Annotated[float, typer.Option(min=1, help="Requests a second, times those at capacity.")] = 20.0,
    capacity_seconds: Annotated[float, typer.Option(min=5, help="Time at capacity, before and after.")] = 40.0,
    overload_seconds: Annotated[float, typer.Option(min=5, help="Time of the overload.")] = 120.0,
    max_tokens: options.MaxTokens = 64,
    seed: options.Seed = 0,
    prompts: options.Prompts = None,
) -> None:
    """Measure the server under overload."""
    arguments = options.recorded(locals())
    texts = [prompt.text for prompt in render(model, held_out(256, seed, prompts))]
    load = Load(max_tokens, capacity_seconds, overload_seconds)
    served = ["--model", str(model), "--draft", str(draft), "--served-model-name", MODEL]
    served += ["--max-num-seqs", str(seats), "--max-queued-requests", str(queue)]
    with (
        tempfile.TemporaryDirectory() as name,
        aerie_server("aerie", served, Path(name) / "log") as server,
    ):
        fill_caches(server, MODEL, random.Random(seed))
        phases = asyncio.run(measure(server, texts, load, seats, factor, random.Random(seed)))
    provenance = Provenance.now(arguments, [seed], options.inputs(model=model, draft=draft, prompts=prompts))
    result = ResultFile(provenance=provenance, runs=runs(phases), figures=figures(phases))
    result.write(out)
    options.show(result.figures)


if __name__ == "__main__":
    options.run(main)
