# SPDX-License-Identifier: Apache-2.0
"""`aerie bench quality`: whether drafting changes the output, and what INT4 does to it, in one result file.

1. Losslessness: greedy answers with and without the draft (`losslessness.greedy`), the distribution of first tokens at
   temperature 1 (`losslessness.temperature`).
2. Quality: greedy answers to held-out patients that parse as the turn that is due (`quality.parse_rate`), perplexity of
   held-out consultations (`quality.held_out_text`), what quantising reported (`quality.report`).
3. With `--reference`, the 16-bit model: `quality.agreement`, and `perplexity_loss`, the relative difference.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, JsonValue

from aerie.benchmarks import options
from aerie.benchmarks.errors import BenchmarkError
from aerie.benchmarks.losslessness import greedy, temperature
from aerie.benchmarks.points import Points, Record
from aerie.benchmarks.progress import resumable
from aerie.benchmarks.prompts import held_out, render
from aerie.benchmarks.quality import agreement, parse_rate
from aerie.benchmarks.quality.held_out_text import TextQuality, text_quality
from aerie.benchmarks.results_file import Provenance, ResultFile, Run
from aerie.draft_models.checkpoint import DraftMismatch, verify_draft
from aerie.draft_models.offline import Answer, EngineOptions, Sampling, offline_engine
from aerie.quant.stream import REPORT_NAME
from aerie.trainer.clinic import corpus

TEXT, REPORT = "quality.held_out_text", "quality.report"
CARD = "card.json"
Parts = tuple[list[Run], dict[str, float]]


class Amount(BaseModel):
    """How much is measured."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    greedy: int = Field(default=64, ge=1)
    """Prompts whose greedy answers are compared."""
    sampled: int = Field(default=8, ge=1)
    """Prompts that are sampled at temperature 1, by each engine so many times:"""
    samples: int = Field(default=500, ge=50)
    answers: int = Field(default=200, ge=1)
    """Answers that are read back, and compared with those of the 16-bit model."""
    documents: int = Field(default=96, ge=1)
    """Consultations whose perplexity is taken."""


SMALL = Amount(greedy=8, sampled=4, samples=100, answers=24, documents=12)


class Subject(BaseModel):
    """What is measured."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    model: Path
    draft: Path
    reference: Path | None = None
    draft_tokens: int = 4
    seed: int = 0
    prompts: Path | None = None
    """For losslessness; quality is that of the clinic's consultations."""


def _greedy(subject: Subject, amount: Amount) -> list[Record]:
    prompts = render(subject.model, held_out(amount.greedy, subject.seed, subject.prompts))
    return [greedy.measure(subject.model, subject.draft, subject.draft_tokens, prompts, max_tokens=128)]


def _sampled(subject: Subject, amount: Amount) -> list[Record]:
    prompts = render(subject.model, held_out(amount.sampled, subject.seed, subject.prompts))
    model, draft, drafted = subject.model, subject.draft, subject.draft_tokens
    return [temperature.measure(model, draft, drafted, prompts, amount.samples, length=6, seed=subject.seed)]


def _spoken(model: Path, subject: Subject, amount: Amount) -> list[Record]:
    """The text's quality, then every answer, from one engine."""
    chats = [prompt.messages for prompt in corpus.prompts("held_out", amount.answers, subject.seed)]
    tokens = [prompt.token_ids for prompt in render(model, chats)]
    with offline_engine(EngineOptions(model=model, seed=subject.seed)) as engine:
        text = text_quality(engine, model, amount.documents, subject.seed)
        answers = [one for (one,) in engine.generate(tokens, Sampling(max_tokens=512))]
    kept: list[Record] = [
        {"token_ids": list(one.token_ids), "text": one.text, "finish_reason": one.finish_reason} for one in answers
    ]
    return [text.model_dump(mode="json"), *kept]


def _answers(records: Sequence[Mapping[str, Any]]) -> list[Answer]:
    return [Answer(tuple(one["token_ids"]), one["text"], one["finish_reason"], None) for one in records]


def reported(model: Path) -> dict[str, JsonValue] | None:
    """What quantising told of a checkpoint's quality: its own report's, or its card's; None where there is neither."""
    sources = ((model / REPORT_NAME, None), (model.parent / CARD, "quantisation"))
    for path, part in sources:
        if path.is_file():
            found = json.loads(path.read_text())
            quality = (found if part is None else found.get(part, {})).get("quality")
            if quality is not None:
                return dict(quality)
    return None


def _losslessness(points: Points, subject: Subject, amount: Amount, advance: Callable[[str], None]) -> Parts:
    (compared,) = points.kept("greedy", partial(_greedy, subject, amount))
    advance("greedy answers compared")
    (tested,) = points.kept("temperature", partial(_sampled, subject, amount))
    advance("samples compared")
    share = float(str(compared["identical"])) / float(str(compared["prompts"]))
    return (
        [Run(benchmark=greedy.NAME, measured=compared), Run(benchmark=temperature.NAME, measured=tested)],
        {"greedy_identical": share, **temperature.figures_of_record(tested)},
    )


def _agreement(reference: Path, before: Sequence[Answer], after: Sequence[Answer]) -> Parts:
    end = _end(reference)
    pairs = list(zip(before, after, strict=True))
    found = agreement.figures(pairs, end)
    differing: list[JsonValue] = [
        [one.text, other.text] for one, other in pairs if agreement.turn(one, end) != agreement.turn(other, end)
    ]
    measured: Record = {"answers": len(pairs), "differing": differing[: agreement.SHOWN], **found}
    return [Run(benchmark=agreement.NAME, measured=measured)], found


def _end(model: Path) -> str:
    from transformers import AutoTokenizer

    return str(AutoTokenizer.from_pretrained(model).eos_token)


def _quality(points: Points, subject: Subject, amount: Amount, advance: Callable[[str], None]) -> Parts:
    text, *records = points.kept("model", partial(_spoken, subject.model, subject, amount))
    advance("answers of the model")
    answers = _answers(records)
    prompts = corpus.prompts("held_out", amount.answers, subject.seed)
    end = _end(subject.model)
    readings = [
        parse_rate.read(prompt.expected, answer.text, end, answer.finish_reason)
        for prompt, answer in zip(prompts, answers, strict=True)
    ]
    runs = [
        Run(benchmark=parse_rate.NAME, measured=parse_rate.raw(readings)),
        Run(benchmark=TEXT, measured={"model": "model", **text}),
    ]
    if (report := reported(subject.model)) is not None:
        runs.append(Run(benchmark=REPORT, measured=report))
    quality = TextQuality.model_validate(text)
    found = {"parse_rate": parse_rate.rate(readings), "perplexity": quality.perplexity, "top1": quality.top1}
    if subject.reference is None:
        return runs, found
    theirs, *records = points.kept("reference", partial(_spoken, subject.reference, subject, amount))
    advance("answers of the reference")
    more, figures = _agreement(subject.reference, _answers(records), answers)
    reference = TextQuality.model_validate(theirs)
    runs += [Run(benchmark=TEXT, measured={"model": "reference", **theirs}), *more]
    loss = quality.perplexity / reference.perplexity - 1
    return runs, {**found, **figures, "perplexity_reference": reference.perplexity, "perplexity_loss": loss}


def run(out: Path, subject: Subject, amount: Amount, work: Path) -> None:
    """Measure what is not kept yet, and write the result; raises BenchmarkError."""
    try:
        verify_draft(subject.draft, subject.model)
    except DraftMismatch as error:
        raise BenchmarkError(str(error)) from error
    inputs = options.inputs(
        model=subject.model, draft=subject.draft, reference=subject.reference, prompts=subject.prompts
    )
    arguments = options.recorded({**subject.model_dump(), **amount.model_dump()})
    points = Points(work, {**arguments, "inputs": dict(inputs)})
    with resumable(points, 3 if subject.reference is None else 4) as advance:
        runs, found = _losslessness(points, subject, amount, advance)
        more, figures = _quality(points, subject, amount, advance)
    rounded = {name: float(f"{value:.5g}") for name, value in {**found, **figures}.items()}
    provenance = Provenance.now(arguments, [subject.seed, subject.seed + 1], inputs)
    ResultFile(provenance=provenance, runs=[*runs, *more], figures=rounded).write(out)
    options.show(rounded)
