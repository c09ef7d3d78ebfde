# SPDX-License-Identifier: Apache-2.0
"""How long calls on a GPU take: graphs replayed in turns, under a budget of time.

A `Timer` makes of some calls a function that runs them all once and tells the microseconds of one. `GraphTimer` is the
one for GPUs; whoever measures takes any.
"""

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import torch

from aerie.benchmarks.points import Record

Call = Callable[[], object]
LEAST_ROUNDS = 5
"""Fewer have no median worth the name."""
COPIED_BYTES = 2**30


class Timer(Protocol):
    """Prepares calls to be timed."""

    def prepare(self, calls: Sequence[Call]) -> Callable[[], float]:
        """What runs the calls one after another and returns the mean microseconds of one."""


class GraphTimer:
    """Calls captured in one CUDA graph, as an engine replays its own: no launch from Python is in the time."""

    def __init__(self) -> None:
        self.stream = torch.cuda.Stream()

    def prepare(self, calls: Sequence[Call]) -> Callable[[], float]:
        """Each call runs once outside, on the stream of the capture: there kernels compile and workspaces are made."""
        self.stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(self.stream):
            for call in calls:
                call()
        torch.cuda.synchronize()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, stream=self.stream):
            for call in calls:
                call()
        start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)

        def replay() -> float:
            # The first keeps the GPU at work until the second is queued: else its launch would be in the time.
            graph.replay()
            start.record()
            graph.replay()
            end.record()
            end.synchronize()
            return float(start.elapsed_time(end)) * 1000 / len(calls)

        return replay


@dataclass
class Budget:
    """Seconds that a measurement may take; the clock can be another than the machine's."""

    seconds: float
    clock: Callable[[], float] = time.monotonic
    started: float = field(init=False)

    def __post_init__(self) -> None:
        self.started = self.clock()

    def spent(self) -> float:
        """Seconds since the start."""
        return self.clock() - self.started

    def left(self) -> float:
        """Seconds, below 0 when it is overspent."""
        return self.seconds - self.spent()

    def share(self, parts: int) -> "Budget":
        """A budget of one of so many equal parts of what is left, from now on."""
        return Budget(max(self.left(), 0.0) / parts, self.clock)


def interleaved(
    ways: Mapping[str, Sequence[Call]],
    timer: Timer,
    rounds: int,
    budget: Budget | None = None,
    refused: dict[str, Exception] | None = None,
) -> dict[str, list[float]]:
    """Microseconds a call of each way, one value a round.

    In each round every way has its turn, and from one round to the next their order is reversed, so that a GPU that
    slows down or speeds up favours none. A spent budget ends it early, after LEAST_ROUNDS at the soonest. Ways that
    cannot be prepared go to `refused`, where there is one to take them, with what they raised.
    """
    replays: dict[str, Callable[[], float]] = {}
    for name, calls in ways.items():
        try:
            replays[name] = timer.prepare(calls)
        except Exception as reason:
            if refused is None:
                raise
            refused[name] = reason
    for replay in replays.values():
        replay()
    times: dict[str, list[float]] = {name: [] for name in replays}
    for turn in range(rounds):
        if budget is not None and turn >= LEAST_ROUNDS and budget.left() <= 0:
            break
        for name in list(replays) if turn % 2 == 0 else reversed(replays):
            times[name].append(replays[name]())
    return times


def copy_bandwidth(timer: Timer, rounds: int, device: str = "cuda", size: int = COPIED_BYTES) -> Record:
    """Bytes a second that a copy reads and writes, in GB: `copy_gbs`, the median over rounds, and `copy_gbs_std`."""
    source = torch.empty(size, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    times = interleaved({"copy": [lambda: target.copy_(source)]}, timer, rounds)["copy"]
    rates = [2 * size / one / 1000 for one in times]
    return {"copy_gbs": statistics.median(rates), "copy_gbs_std": statistics.stdev(rates)}
