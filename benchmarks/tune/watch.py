# SPDX-License-Identifier: Apache-2.0
"""Step times of a server under load, from its own counters.

Not from the load generator's times between chunks: where the front end is slower than the engine, several steps come in
one chunk.
"""

import statistics
import threading
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Self

import httpx

from aerie.benchmarks.errors import BenchmarkError
from aerie.benchmarks.serving.gauges import total

POLL_S, FAST_POLL_S = 0.25, 0.05
"""Between two looks; the second one where a step takes so little that they cost it nothing."""
LEAST_STEPS = 8


class TuneError(BenchmarkError):
    """A measurement that tuning needs cannot be made, or must not be trusted."""


@dataclass(frozen=True)
class Sample:
    """What a server told at a time."""

    seconds: float
    steps: float
    running: float
    first_tokens: float
    """Requests that have had theirs, since the server's start."""

    @classmethod
    def read(cls, page: str, seconds: float) -> Self:
        """From the text of `/metrics`."""
        return cls(
            seconds,
            total(page, "vllm:iteration_tokens_total_count"),
            total(page, "vllm:num_requests_running"),
            total(page, "vllm:time_to_first_token_seconds_count"),
        )


class Watch(threading.Thread):
    """Asks for the counters every `poll_s` seconds until its block ends."""

    def __init__(self, url: str, poll_s: float = POLL_S) -> None:
        super().__init__(name="watch", daemon=True)
        self.samples: list[Sample] = []
        self._poll_s = poll_s
        self._url = f"{url}/metrics"
        self._ended = threading.Event()

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self.join()

    def run(self) -> None:
        """Ask; a page that does not come in time is missed."""
        with httpx.Client(timeout=10, trust_env=False) as http:
            while not self._ended.is_set():
                before = time.monotonic()
                with suppress(httpx.HTTPError):
                    page = http.get(self._url).text
                    self.samples.append(Sample.read(page, (before + time.monotonic()) / 2))
                self._ended.wait(self._poll_s)


def whole(samples: Sequence[Sample], batch: int) -> list[Sample]:
    """Those of the time in which the whole batch ran and none of its prompts any more."""
    began = samples[0].first_tokens if samples else 0
    return [one for one in samples if one.running == batch and one.first_tokens - began >= batch]


def seconds_whole(samples: Sequence[Sample], batch: int) -> float:
    """How long that was, as far as it was seen."""
    full = whole(samples, batch)
    return full[-1].seconds - full[0].seconds if full else 0.0


def step_ms(samples: Sequence[Sample], batch: int) -> tuple[float, int]:
    """Milliseconds of a step while the whole batch ran and none of its prompts any more, and how many steps those were.

    Raises:
        TuneError: too few.
    """
    full = whole(samples, batch)
    steps = int(full[-1].steps - full[0].steps) if full else 0
    if steps < LEAST_STEPS:
        most = max((one.running for one in samples), default=0)
        raise TuneError(
            f"only {steps} steps were seen with {batch} requests, of which {most:.0f} ran at once; is something else "
            "using the server, or does its KV cache hold fewer?"
        )
    slope, _ = statistics.linear_regression([one.steps for one in full], [one.seconds for one in full])
    return 1000 * slope, steps
