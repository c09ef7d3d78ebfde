# SPDX-License-Identifier: Apache-2.0
"""What the gate measures, in one engine with the draft: acceptance by domain, answers that parse, perplexity.

Everything is greedy and from seeds, and requests are handed over before the first step, so that the same ones meet in a
batch: the figures are the same in every run on one machine. No time is measured.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import get_args

from aerie.benchmarks.prompts import clinic_domains, render
from aerie.benchmarks.quality.held_out_text import text_quality
from aerie.benchmarks.quality.parse_rate import Reading, rate, read
from aerie.benchmarks.regression.floors import Asked
from aerie.draft_models.acceptance import AcceptanceCounts, pool
from aerie.draft_models.measure import acceptance_of, answer_all
from aerie.draft_models.offline import EngineOptions, OfflineEngine, Sampling
from aerie.trainer.clinic.parse import AnswerKind

DOMAINS: tuple[str, ...] = get_args(AnswerKind)


def engine_options(model: Path, draft: Path, asked: Asked) -> EngineOptions:
    """Of the engine that is measured."""
    return EngineOptions(
        model=model, draft=draft, draft_tokens=asked.draft_tokens, seed=asked.seed, in_process=True
    )  # fmt: skip


def acceptance(engine: OfflineEngine, model: Path, asked: Asked, domains: Sequence[str] = DOMAINS) -> dict[str, float]:
    """`acceptance_length_DOMAIN` of each; over them together `acceptance_length` and `parse_rate`.

    Raises AcceptanceError when the counts contradict each other.
    """
    from transformers import AutoTokenizer

    end = str(AutoTokenizer.from_pretrained(model).eos_token)
    prompts = clinic_domains(asked.prompts, asked.seed)
    figures, counts, readings = dict[str, float](), list[AcceptanceCounts](), list[Reading]()
    for domain in domains:
        tokens = [one.token_ids for one in render(model, [prompt.messages for prompt in prompts[domain]])]
        answers = answer_all(engine, tokens, Sampling(asked.max_tokens))
        pooled = acceptance_of(answers).pooled
        figures[f"acceptance_length_{domain}"] = pooled.length
        counts.append(pooled)
        readings += [read(domain, one.text, end, one.finish_reason) for one in answers]
    return {"acceptance_length": pool(counts).length, **figures, "parse_rate": rate(readings)}


def measure(engine: OfflineEngine, model: Path, asked: Asked) -> dict[str, float]:
    """Every figure that has a bound; raises AcceptanceError."""
    text = text_quality(engine, model, asked.documents, asked.seed)
    return {**acceptance(engine, model, asked), "perplexity": text.perplexity, "top1": text.top1}
