# SPDX-License-Identifier: Apache-2.0
"""Does INT4 say what 16 bit says? Free-running greedy answers of both models to the same held-out patients.

`python -m aerie.benchmarks.quality.agreement --model INT4 --reference BF16 --out FILE`. Only turns count that the
16-bit model answered well formed. Figures: `turn_agreement`, the share of them to which INT4 gives the same kind of
turn; `turn_agreement_answer`, the same answer to the letter, reasoning aside; `turn_agreement_tokens`, every token.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer

from aerie.benchmarks import options
from aerie.benchmarks.errors import BenchmarkError
from aerie.benchmarks.prompts import render
from aerie.benchmarks.results_file import Provenance, ResultFile, Run
from aerie.draft_models.offline import Answer, EngineOptions, Sampling, offline_engine
from aerie.trainer.clinic import corpus
from aerie.trainer.clinic.parse import parse_answer, split_reasoning

NAME = "quality.agreement"
SHOWN = 10
"""Differing answers that the result names."""


def answers(model: Path, count: int, max_tokens: int, seed: int) -> list[Answer]:
    """Greedy answers to held-out consultations."""
    chats = [prompt.messages for prompt in corpus.prompts("held_out", count, seed)]
    tokens = [prompt.token_ids for prompt in render(model, chats)]
    with offline_engine(EngineOptions(model=model, seed=seed)) as engine:
        return [one for (one,) in engine.generate(tokens, Sampling(max_tokens))]


def turn(answer: Answer, end: str) -> tuple[str, str] | None:
    """`(kind, answer)`, reasoning aside; None when it was cut off or is not well formed."""
    parts = split_reasoning(answer.text.removesuffix(end))
    kind = parse_answer(parts[1]) if parts is not None and answer.finish_reason == "stop" else None
    return None if kind is None or parts is None else (kind, parts[1].strip())


def figures(pairs: Sequence[tuple[Answer, Answer]], end: str) -> dict[str, float]:
    """Of `(reference, quantised)` answers; raises BenchmarkError when no reference is well formed."""
    read = [(turn(one, end), turn(other, end), one.token_ids == other.token_ids) for one, other in pairs]
    parsed = [(before, after, same) for before, after, same in read if before is not None]
    if not parsed:
        raise BenchmarkError("no answer of --reference is a well-formed turn; give the model that --model was made of")
    return {
        "turn_agreement": sum(after is not None and after[0] == before[0] for before, after, _ in parsed) / len(parsed),
        "turn_agreement_answer": sum(after == before for before, after, _ in parsed) / len(parsed),
        "turn_agreement_tokens": sum(same for _, _, same in parsed) / len(parsed),
        "turns_parsed": len(parsed),
    }


def main(
    out: options.Out,
    reference: Annotated[Path, typer.Option(exists=True, file_okay=False, help="16-bit model.")],
    model: options.Model = options.DEMO_MODEL,
    count: options.Count = 200,
    max_tokens: options.MaxTokens = 512,
    seed: options.Seed = 0,
) -> None:
    """Answer with both, compare, write the result."""
    from transformers import AutoTokenizer

    arguments = options.recorded(locals())
    end = str(AutoTokenizer.from_pretrained(reference).eos_token)
    before, after = (answers(one, count, max_tokens, seed) for one in (reference, model))
    pairs = list(zip(before, after, strict=True))
    found = figures(pairs, end)
    differing = [(one.text, other.text) for one, other in pairs if turn(one, end) != turn(other, end)]
    measured = {"answers": len(pairs), "differing": [list(pair) for pair in differing[:SHOWN]], **found}
    provenance = Provenance.now(arguments, [seed], options.inputs(model=model, reference=reference))
    ResultFile(provenance=provenance, runs=[Run(benchmark=NAME, measured=measured)], figures=found).write(out)
    options.show(found)


if __name__ == "__main__":
    options.run(main)
