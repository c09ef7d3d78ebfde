# SPDX-License-Identifier: Apache-2.0
"""Step times, the cost of letting a request in, and acceptance, of real servers under the load generator.

Over HTTP, because the front end and its client share the processor with the engine, and slow its steps down where cores
are few. All Ks are measured on one server, whose scheduler reads K from a file (`switch`); a second one has no draft.
"""

import itertools
import json
from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path

import httpx
from pydantic import JsonValue

from aerie.benchmarks.points import Record
from aerie.benchmarks.prompts import Prompt
from aerie.benchmarks.serving.generator import Generator
from aerie.benchmarks.serving.load import LONGEST, RESULT, LoadOptions, LoadReport, put_load
from aerie.benchmarks.tune.watch import FAST_POLL_S, POLL_S, TuneError, Watch, seconds_whole, step_ms

STEPS, MORE_STEPS = 20, 64
"""Of a request in a measurement of step times; more by the number of requests, for seconds that can be told apart."""
YIELD = 0.75
"""Tokens that a drafted one is taken to bring, for the length of those answers; more make fewer steps."""
LEAST_SECONDS, WANTED_SECONDS = 1.0, 2.0
"""Of steps of the whole batch in a measurement: where a run had fewer, a longer one follows."""


@dataclass(frozen=True)
class Bench:
    """A server under measurement. `switch` is the file of K; `None` for the server without a draft."""

    url: str
    model: Path
    generator: Generator
    logs: Path
    switch: Path | None

    def put(
        self,
        name: str,
        prompts: Sequence[Prompt],
        concurrency: int,
        max_tokens: int,
        *,
        ignore_eos: bool,
        cache_salt: str | None = None,
    ) -> tuple[LoadReport, dict[str, JsonValue]]:
        """One run of the load generator: its report, and all that it saved."""
        load = LoadOptions(
            tokenizer=self.model,
            max_tokens=max_tokens,
            concurrency=concurrency,
            warmups=0,
            ignore_eos=ignore_eos,
            cache_salt=cache_salt,
        )
        report = put_load(self.url, prompts, load, self.logs / name, self.generator)
        saved: dict[str, JsonValue] = json.loads((self.logs / name / RESULT).read_text())
        return report, saved

    def watch(self, poll_s: float) -> AbstractContextManager[Watch]:
        """Samples of the server's counters during a block."""
        return Watch(self.url, poll_s)

    def longest(self, prompts: Sequence[Prompt]) -> int:
        """Tokens of an answer to any of these prompts that the server and the load generator take."""
        listed = httpx.get(f"{self.url}/v1/models", trust_env=False).json()["data"]
        return min(LONGEST, int(listed[0]["max_model_len"])) - max(len(one.token_ids) for one in prompts)

    def draft(self, draft_tokens: int) -> None:
        """Choose K from now on."""
        if self.switch is not None:
            self.switch.write_text(str(draft_tokens))


def measure_steps(bench: Bench, prompts: Sequence[Prompt], draft_tokens: int | None, index: int) -> Record:
    """One point of t(b, K): a batch of as many requests as prompts, of equal length.

    A step may take half a millisecond or half a second: answers are made longer until there was enough to see.

    Raises:
        TuneError: too few steps were seen with answers as long as the server takes them.
    """
    batch = len(prompts)
    bench.draft(draft_tokens or 0)
    length = round((STEPS + MORE_STEPS // batch) * (1 + YIELD * (draft_tokens or 0)))
    name = f"steps-{index}-b{batch}-{'plain' if draft_tokens is None else f'k{draft_tokens}'}"
    poll_s, longest = POLL_S, 0
    while True:
        with bench.watch(poll_s) as watch:
            report, _ = bench.put(name, prompts, batch, length, ignore_eos=True)
        seconds = seconds_whole(watch.samples, batch)
        if seconds >= LEAST_SECONDS:
            break
        longest = longest or bench.longest(prompts)
        if length >= longest:
            break
        longer = WANTED_SECONDS / (seconds + poll_s)  # what lies before the first look and behind the last is unseen
        length = min(longest, round(length * longer))
        poll_s = FAST_POLL_S
    milliseconds, steps = step_ms(watch.samples, batch)
    return {
        "batch": batch,
        "draft_tokens": draft_tokens,
        "index": index,
        "step_ms": round(milliseconds, 4),
        "steps": steps,
        "acceptance_length": _length(report),
    }


def measure_entry(bench: Bench, prompts: Sequence[Prompt], concurrency: int, index: int) -> Record:
    """What a request costs up to its first token, by requests that have no second one."""
    bench.draft(0)
    report, _ = bench.put(f"entry-{index}-c{concurrency}", prompts, concurrency, 1, ignore_eos=True)
    return {
        "concurrency": concurrency,
        "index": index,
        "request_ms": round(1000 * report.duration_s / report.requests, 4),
        "prompt_tokens": report.input_tokens,
        "requests": report.requests,
    }


def measure_acceptance(bench: Bench, prompts: Sequence[Prompt], most: int, concurrency: int, max_tokens: int) -> Record:
    """Acceptance by position at the largest K, over answers to their natural end, and how long those are.

    Raises:
        TuneError: the server counted no drafts.
    """
    bench.draft(most)
    report, saved = bench.put("acceptance", prompts, concurrency, max_tokens, ignore_eos=False)
    steps, positions = report.spec_decode_num_drafts, report.spec_decode_positions
    if not steps or not positions or report.spec_decode_accepted_tokens is None:
        raise TuneError("the server counted no drafts; is the draft loaded?")
    lengths: list[JsonValue] = [int(str(one)) for one in _list(saved, "output_lens")]
    return {
        "draft_tokens": most,
        "steps": steps,
        "drafted": report.spec_decode_draft_tokens,
        "accepted": report.spec_decode_accepted_tokens,
        "length": 1 + report.spec_decode_accepted_tokens / steps,
        "positions": [*positions],
        "histogram": [*histogram(positions, steps)],
        "answer_tokens": lengths,
    }


def measure_load(
    bench: Bench, name: str, prompts: Sequence[Prompt], draft_tokens: int, concurrency: int, max_tokens: int
) -> Record:
    """Tokens per second of one K under a load like the proof's; its prompts may have been those of other Ks."""
    bench.draft(draft_tokens)
    report, _ = bench.put(name, prompts, concurrency, max_tokens, ignore_eos=False, cache_salt=name)
    return {
        "concurrency": concurrency,
        "draft_tokens": draft_tokens,
        "output_tokens": report.output_tokens,
        "duration_s": report.duration_s,
        "output_tokens_per_s": report.output_tokens_per_s,
    }


def histogram(positions: Sequence[float], steps: int) -> list[int]:
    """Steps that accepted exactly 0, 1, ... tokens, from the shares that accepted at least so many."""
    at_least = [steps, *(round(share * steps) for share in positions), 0]
    return [more - fewer for more, fewer in itertools.pairwise(at_least)]


def _length(report: LoadReport) -> float | None:
    steps, accepted = report.spec_decode_num_drafts, report.spec_decode_accepted_tokens
    return 1 + accepted / steps if steps and accepted is not None else None


def _list(saved: dict[str, JsonValue], name: str) -> list[JsonValue]:
    found = saved.get(name)
    if not isinstance(found, list):
        raise TuneError(f"the load generator saved no {name}")
    return found
