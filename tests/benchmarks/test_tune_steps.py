# SPDX-License-Identifier: Apache-2.0
"""Step times of `aerie tune`: a watch over a server's counters, and steps of any length on a clock of their own."""

import itertools
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import SimpleNamespace
from typing import Self

import pytest

from aerie.benchmarks.points import Record
from aerie.benchmarks.prompts import Prompt
from aerie.benchmarks.tune.measure import measure_steps
from aerie.benchmarks.tune.watch import Sample, TuneError, Watch, step_ms


def test_steps_count_while_the_whole_batch_runs_and_none_of_its_prompts() -> None:
    """Ten seconds at 0.1 s a step with both, after one request alone and before the other one is; 7 came earlier."""
    alone = [Sample(second / 4, second, 1, 7) for second in range(8)]
    prompts = [Sample(2, 8, 2, 8)]
    both = [Sample(3 + second, 10 + 10 * second, 2, 9) for second in range(11)]
    left = [Sample(14 + second, 110 + second, 1, 9) for second in range(5)]
    milliseconds, steps = step_ms([*alone, *prompts, *both, *left], 2)
    assert (round(milliseconds, 6), steps) == (100, 100)
    with pytest.raises(TuneError, match="only 0 steps were seen with 4 requests"):
        step_ms(alone, 4)


class FakeBench:
    """A server of steps of `seconds` on a clock of its own, whose looks come as they would."""

    def __init__(self, seconds: float, context: int = 2048, together: int = 99) -> None:
        self.seconds, self.context, self.together = seconds, context, together
        self.lengths: list[int] = []
        self.samples: list[Sample] = []
        self.poll_s = 0.0

    def draft(self, draft_tokens: int) -> None:
        """There is none."""

    @contextmanager
    def watch(self, poll_s: float) -> Iterator[Self]:
        self.samples, self.poll_s = [], poll_s
        yield self

    def put(
        self, name: str, prompts: Sequence[Prompt], concurrency: int, max_tokens: int, **_: object
    ) -> tuple[object, dict[str, object]]:
        """Prompts take a tenth of a second; a look is 0.3 ms late or early."""
        self.lengths.append(max_tokens)
        looks = int((0.1 + max_tokens * self.seconds) / self.poll_s)
        for look, late in zip(range(looks), itertools.cycle((0.0003, -0.0003, 0.0)), strict=False):
            at = look * self.poll_s
            steps = max(0.0, at - 0.1) // self.seconds
            self.samples.append(
                Sample(at + late, steps, min(concurrency, self.together), concurrency if at > 0.1 else 0)
            )
        return SimpleNamespace(spec_decode_num_drafts=None, spec_decode_accepted_tokens=None), {}

    def longest(self, prompts: Sequence[Prompt]) -> int:
        return self.context - max(len(one.token_ids) for one in prompts)

    def measure(self, batch: int, prompt_tokens: int) -> Record:
        prompts = [Prompt("", (0,) * prompt_tokens)] * batch
        return measure_steps(self, prompts, None, 0)  # type: ignore[arg-type]  # what it needs of a bench


@pytest.mark.parametrize("milliseconds", [0.5, 2, 13, 40, 200, 700])
@pytest.mark.parametrize("batch", [1, 2, 32])
def test_steps_of_any_length_are_measured(milliseconds: float, batch: int) -> None:
    bench = FakeBench(milliseconds / 1000)
    assert bench.measure(batch, 300)["step_ms"] == pytest.approx(milliseconds, rel=0.02)
    assert len(bench.lengths) == 1 or max(bench.lengths) * milliseconds < 8000


def test_answers_are_no_longer_than_the_server_takes_them() -> None:
    bench = FakeBench(0.0005, context=700)
    assert bench.measure(2, 100)["step_ms"] == pytest.approx(0.5, rel=0.05)
    assert bench.lengths[-1] == 600
    with pytest.raises(TuneError, match="only 0 steps were seen with 2 requests, of which 1 ran at once"):
        FakeBench(0.0005, together=1).measure(2, 100)


class Page(BaseHTTPRequestHandler):
    """`/metrics` of a server with one request, one step further each time."""

    steps = itertools.count(1)

    def do_GET(self) -> None:
        told = {"vllm:iteration_tokens_total_count": next(self.steps), "vllm:num_requests_running": 1}
        self.send_response(200)
        self.end_headers()
        self.wfile.write("".join(f'{name}{{engine="0"}} {value}\n' for name, value in told.items()).encode())

    def log_message(self, *_: object) -> None:
        """Be quiet."""


def test_a_watch_reads_the_counters_until_its_block_ends() -> None:
    with ThreadingHTTPServer(("127.0.0.1", 0), Page) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        with Watch(f"http://127.0.0.1:{server.server_port}") as watch:
            while len(watch.samples) < 2:
                time.sleep(0.01)
        server.shutdown()
    assert not watch.is_alive()
    assert [one.steps for one in watch.samples[:2]] == [1, 2]
    assert watch.samples[0].running == 1
