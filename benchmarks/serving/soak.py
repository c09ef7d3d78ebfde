# SPDX-License-Identifier: Apache-2.0
"""Whether `aerie serve` leaks: a mixed load for a long time, and what each of its processes holds meanwhile.

`python -m aerie.benchmarks.serving.soak --out FILE`. The load (`mixed_load.KINDS`) pauses every `ROUND_S` seconds until
the server says that it is idle; what its processes hold then owes nothing to requests in flight. Samples under load are
recorded too, and judged by nobody.

Judged is the growth by 1,000 requests over the idle samples after the first quarter of the run (`flatness`), of each
process: memory (`RssAnon` + `VmSwap`), file descriptors, threads. The bounds: 1 MiB of memory, for a server that keeps
so much as the text of each request keeps more; 1 descriptor or thread, for one that is lost at one request in a
thousand.

The positive control is the same server with a planted leak (`leaky_server`), under the same load for a shorter time,
with the same verdict: what the soak does not find in it, it cannot deny of ours.

Figures: `flat` and `control_flagged`, 1 or 0; `memory_mib_per_1000_requests_P` with the interval's upper end
`..._P_high`, and `fds_growth_P`, `threads_growth_P`, last less first idle sample, of process P (`front`, `engine`,
`worker`); `requests` and how they ended; `idle_kv_usage`, `idle_running`, the most ever left when idle was waited for;
`idle_after_s`, the longest that took.
"""

import asyncio
import math
import random
import tempfile
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

import psutil  # type: ignore[import-untyped]  # its stubs are a package of their own
import typer
from pydantic import JsonValue

from aerie.benchmarks import options
from aerie.benchmarks.errors import BenchmarkError
from aerie.benchmarks.prompts import held_out
from aerie.benchmarks.results_file import Provenance, ResultFile, Run
from aerie.benchmarks.serving.flatness import Trend, Verdict, trend
from aerie.benchmarks.serving.gauges import Gauges, until_idle
from aerie.benchmarks.serving.leaky_server import leaky_command
from aerie.benchmarks.serving.mixed_load import MixedLoad
from aerie.benchmarks.serving.processes import Server, aerie_server, serve_command
from aerie.benchmarks.serving.usage import FRONT, OTHERS, Usage, usage
from aerie.benchmarks.serving.warm_up import fill_caches

NAME = "serving.soak"
MODEL = "demo"
ROUND_S, SAMPLE_S = 10.0, 5.0
IDLE_TIMEOUT_S = 60.0
ENVIRONMENT = {"ONEDNN_PRIMITIVE_CACHE_CAPACITY": "16"}
"""Of the servers: at its default size oneDNN's cache of products (`warm_up`) moves the worker's memory by half a MiB a
product for thousands of requests, beside which a KiB a request is not seen. Few entries are soon in balance."""
SETTLING_S = 1.0
"""For connections that the client closed to be closed by the server."""
WARM_UP = 0.25
"""Share of the run that is not judged: allocators' pools, caches with a bound, modules imported at first use."""
BOUNDS = {"memory_mib": 1.0, "fds": 1.0, "threads": 1.0}
"""Growth by 1,000 requests that would matter."""


@dataclass(frozen=True)
class Sample:
    """What the processes held after so many requests."""

    time_s: float
    requests: int
    held: dict[str, Usage]
    idle: tuple[Gauges, float] | None = None
    """With how long it took to get there; None under load."""

    def summary(self) -> str:
        """One line for the terminal."""
        held = (f"{name} {one.memory_mib:.1f} MiB, {one.fds} fds" for name, one in self.held.items() if name != OTHERS)
        return f"{self.time_s:.0f} s, {self.requests} requests: {'; '.join(held)}"

    def rows(self) -> list[str]:
        """For a result file: seconds, requests, idle or busy, process, descriptors, threads, MiB."""
        when = f"{self.time_s:.1f} {self.requests} {'busy' if self.idle is None else 'idle'}"
        return [f"{when} {name} {one.fds} {one.threads} {one.memory_mib:.2f}" for name, one in self.held.items()]


@dataclass
class Recording:
    """One server's soak."""

    name: str
    load: MixedLoad
    samples: list[Sample] = field(default_factory=list)

    @property
    def judged(self) -> list[Sample]:
        """The idle samples after the warm-up."""
        idle = [sample for sample in self.samples if sample.idle is not None]
        return [sample for sample in idle if sample.requests >= WARM_UP * self.load.requests]

    def processes(self) -> list[str]:
        """The roles that were there all the time; helpers of Python's come and go."""
        return [name for name in self.judged[0].held if name != OTHERS and all(name in one.held for one in self.judged)]

    def series(self, process: str, quantity: str) -> list[float]:
        """What a process held, over the judged samples."""
        return [getattr(sample.held[process], quantity) for sample in self.judged]

    def trends(self) -> dict[tuple[str, str], Trend]:
        """Growth by 1,000 requests, by process and quantity."""
        thousands = [sample.requests / 1000 for sample in self.judged]
        return {
            (process, quantity): trend(thousands, self.series(process, quantity))
            for process in self.processes()
            for quantity in BOUNDS
        }

    def verdicts(self) -> dict[tuple[str, str], Verdict]:
        """By process and quantity."""
        return {key: one.verdict(BOUNDS[key[1]]) for key, one in self.trends().items()}

    def raw(self) -> dict[str, JsonValue]:
        """For a result file."""
        ended: list[JsonValue] = [f"{kind} {how} {count}" for (kind, how), count in sorted(self.load.ended.items())]
        idle = [(one.time_s, *one.idle) for one in self.samples if one.idle is not None]
        return {
            "server": self.name,
            "ended": ended,
            "losses": [*self.load.losses[:20]],
            "samples": [row for sample in self.samples for row in sample.rows()],
            "idle": [f"{time_s:.1f} {waited:.2f} {told}" for time_s, told, waited in idle],
            "verdicts": {" ".join(key): verdict for key, verdict in self.verdicts().items()},
        }


async def watch(server: Server, recording: Recording, began: float) -> None:
    """Sample under load until cancelled."""
    while True:
        await asyncio.sleep(SAMPLE_S)
        with suppress(OSError, psutil.Error):  # a server that ended is told by the requests
            recording.samples.append(Sample(time.monotonic() - began, recording.load.requests, usage(server)))


async def soak(server: Server, recording: Recording, concurrency: int, seconds: float) -> None:
    """Rounds of load, each followed by an idle sample."""
    began = time.monotonic()
    while time.monotonic() - began < seconds:
        watching = asyncio.create_task(watch(server, recording, began))
        try:
            await recording.load.run(server.url, concurrency, min(ROUND_S, seconds))
        finally:
            watching.cancel()
        if server.process.poll() is not None:
            raise BenchmarkError(f"the server ended with {server.process.returncode} under load")
        idle = await until_idle(server, IDLE_TIMEOUT_S)
        await asyncio.sleep(SETTLING_S)
        recording.samples.append(Sample(time.monotonic() - began, recording.load.requests, usage(server), idle))
        typer.echo(recording.samples[-1].summary())


def figures(ours: Recording, control: Recording) -> dict[str, float]:
    """As the module's text defines them."""
    idle = [sample.idle for sample in ours.samples if sample.idle is not None]
    found: dict[str, float] = {
        "flat": set(ours.verdicts().values()) == {"flat"},
        "control_flagged": all(control.verdicts()[FRONT, quantity] == "growing" for quantity in BOUNDS),
        "requests": ours.load.requests,
        **{name: ours.load.total(name) for name in ("answered", "refused", "left", "overloaded", "lost")},
        "idle_kv_usage": max(told.kv_usage for told, _ in idle),
        "idle_running": max(told.running + told.waiting + told.in_flight for told, _ in idle),
        "idle_after_s": max(waited for _, waited in idle),
    }
    trends = ours.trends()
    for process in ours.processes():
        memory = trends[process, "memory_mib"]
        found[f"memory_mib_per_1000_requests_{process}"] = memory.slope
        found[f"memory_mib_per_1000_requests_{process}_high"] = memory.high
        for quantity in ("fds", "threads"):
            series = ours.series(process, quantity)
            found[f"{quantity}_growth_{process}"] = series[-1] - series[0]
        found[f"memory_mib_{process}"] = ours.series(process, "memory_mib")[-1]
    for quantity in BOUNDS:
        found[f"control_{quantity}_per_1000_requests"] = control.trends()[FRONT, quantity].slope
    # Without enough points an interval has no end, and a figure that was not measured is left out.
    return {name: float(f"{value:.5g}") for name, value in found.items() if math.isfinite(value)}


def failures(ours: Recording, told: dict[str, float]) -> list[str]:
    """What a release must not have, in words."""
    wrong = [f"{' '.join(key)}: {verdict}" for key, verdict in ours.verdicts().items() if verdict != "flat"]
    wrong += [f"{told['lost']:.0f} requests were lost"] if told["lost"] else []
    wrong += ["the server kept something when idle"] if told["idle_kv_usage"] or told["idle_running"] else []
    return wrong + ([] if told["control_flagged"] else ["the planted leak was not found"])


def main(
    out: options.Out,
    model: options.Model = options.DEMO_MODEL,
    draft: options.Draft = options.DEMO_DRAFT,
    seconds: Annotated[float, typer.Option(min=120, help="Time under load.")] = 1200.0,
    control_seconds: Annotated[float, typer.Option(min=120, help="The same for the planted leak.")] = 240.0,
    concurrency: Annotated[int, typer.Option(min=1, help="Requests in flight.")] = 12,
    max_tokens: options.MaxTokens = 48,
    seed: options.Seed = 0,
    prompts: options.Prompts = None,
) -> None:
    """Soak the server, then the same server with a planted leak."""
    arguments = options.recorded(locals(), environment=ENVIRONMENT)
    chats = held_out(256, seed, prompts)
    recordings = []
    servers = (("aerie", serve_command, seconds), ("planted leak", leaky_command, control_seconds))
    served = ["--model", str(model), "--draft", str(draft), "--served-model-name", MODEL]
    for name, command_of, time_s in servers:
        recording = Recording(name, MixedLoad(MODEL, chats, max_tokens, random.Random(seed)))
        with (
            tempfile.TemporaryDirectory() as folder,
            aerie_server(name, served, Path(folder) / "log", command_of, ENVIRONMENT) as server,
        ):
            typer.echo(f"{name}: filling caches, then {time_s:.0f} s")
            fill_caches(server, MODEL, random.Random(seed))
            asyncio.run(soak(server, recording, concurrency, time_s))
        recordings.append(recording)
    provenance = Provenance.now(arguments, [seed], options.inputs(model=model, draft=draft, prompts=prompts))
    _write(out, recordings, provenance)


def _write(out: Path, recordings: Sequence[Recording], provenance: Provenance) -> None:
    """The result, also when it is a bad one; raises BenchmarkError then."""
    ours, control = recordings
    told = figures(ours, control)
    runs = [Run(benchmark=NAME, measured=one.raw()) for one in recordings]
    ResultFile(provenance=provenance, runs=runs, figures=told).write(out)
    options.show(told)
    if wrong := failures(ours, told):
        raise BenchmarkError("; ".join(wrong))


if __name__ == "__main__":
    options.run(main)
