# SPDX-License-Identifier: Apache-2.0
"""Does the demo hold a sensible consultation? Free-running greedy answers to held-out patients, read back.

`python -m aerie.benchmarks.quality.parse_rate --out FILE`. Figure: `parse_rate`, the share of answers that end by
themselves, close their reasoning, and parse as the kind of turn that is due.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated

import typer
from pydantic import JsonValue

from aerie.benchmarks import options
from aerie.benchmarks.prompts import render
from aerie.benchmarks.results_file import Provenance, ResultFile, Run
from aerie.draft_models.offline import EngineOptions, Sampling, offline_engine
from aerie.trainer.clinic import corpus
from aerie.trainer.clinic.parse import parse_answer, split_reasoning

NAME = "quality.parse_rate"
SHOWN_FAILURES = 10


@dataclass(frozen=True)
class Reading:
    """One answer: what was due and what it reads as; None when it is not well formed."""

    expected: str
    found: str | None
    text: str

    @property
    def right(self) -> bool:
        """Whether the answer is the kind of turn that was due."""
        return self.found == self.expected


def read(expected: str, text: str, end: str, finish_reason: str | None) -> Reading:
    """Read a raw generation back; `end` is the token that closes an answer. A cut-off answer is not well formed."""
    parts = split_reasoning(text.removesuffix(end))
    found = parse_answer(parts[1]) if parts is not None and finish_reason == "stop" else None
    return Reading(expected, found, text)


def rate(readings: Sequence[Reading]) -> float:
    """Share of right answers."""
    return sum(one.right for one in readings) / len(readings)


def raw(readings: Sequence[Reading]) -> dict[str, JsonValue]:
    """Right answers and all, by the kind that was due, and the first failures in full."""
    due, right = Counter(one.expected for one in readings), Counter(one.expected for one in readings if one.right)
    failures = [one for one in readings if not one.right][:SHOWN_FAILURES]
    return {
        "by_kind": {kind: {"answers": count, "right": right[kind]} for kind, count in sorted(due.items())},
        "failures": [{"expected": one.expected, "found": one.found, "text": one.text} for one in failures],
    }


def main(
    out: options.Out,
    model: options.Model = options.DEMO_MODEL,
    count: options.Count = 200,
    max_tokens: options.MaxTokens = 512,
    seed: options.Seed = 0,
    unseen_diseases: Annotated[bool, typer.Option(help="Patients with diseases that training never saw.")] = False,
) -> None:
    """Measure how many answers parse as the turn that is due."""
    from transformers import AutoTokenizer

    arguments = options.recorded(locals())
    prompts = corpus.prompts("held_out", count, seed, unseen_diseases=unseen_diseases)
    rendered = render(model, [prompt.messages for prompt in prompts])
    end = str(AutoTokenizer.from_pretrained(model).eos_token)
    with offline_engine(EngineOptions(model=model, seed=seed)) as engine:
        answers = [one for (one,) in engine.generate([prompt.token_ids for prompt in rendered], Sampling(max_tokens))]
    pairs = zip(prompts, answers, strict=True)
    readings = [read(prompt.expected, answer.text, end, answer.finish_reason) for prompt, answer in pairs]
    figures = {"parse_rate_unseen_diseases" if unseen_diseases else "parse_rate": round(rate(readings), 4)}
    provenance = Provenance.now(arguments, [seed], options.inputs(model=model))
    ResultFile(provenance=provenance, runs=[Run(benchmark=NAME, measured=raw(readings))], figures=figures).write(out)
    options.show(figures)


if __name__ == "__main__":
    options.run(main)
