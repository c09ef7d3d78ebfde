# SPDX-License-Identifier: Apache-2.0
"""`aerie quantize` with what only an engine tells: text that the model writes itself, and a draft's acceptance.

Generated text is kept between runs; a file of the user's works too.
"""

import hashlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field

from aerie.draft_models.checkpoint import DraftMismatch, verify_draft
from aerie.quant.convert import HELD_OUT
from aerie.quant.errors import QuantError
from aerie.quant.layerwise import CALIBRATION
from aerie.quant.progress import Bar
from aerie.quant.recipe import QuantRecipe
from aerie.quant.report import DraftAcceptance, QuantReport
from aerie.quant.run import add_acceptance, quantise
from aerie.quant.text import Document, read_documents
from aerie.trainer.draft.child import Child
from aerie.trainer.draft.prompts import Chat, load_prompts, without
from aerie.trainer.draft.recipe import Answers, ClinicPrompts, Prompts, Served
from aerie.trainer.draft.regenerate import FILE, regenerate
from aerie.trainer.draft.served import Job, Measurement, measure
from aerie.trainer.draft.stages import stage, target_hashes
from aerie.trainer.recipe import Schema


class Sampled(Answers):
    """How calibration's prompts are answered."""

    temperature: float = Field(default=1.0, ge=0)
    """Sampled, since greedy answers visit little of what the model can say; held-out answers are greedy."""


class Generated(Schema):
    """Text that the 16-bit model writes through vLLM, with its chat template, its reasoning kept."""

    source: Literal["generated"] = "generated"
    prompts: Prompts = ClinicPrompts(count=128, seed=200)
    """What it answers for calibration; of several domains, if it serves several."""
    held_out: Prompts = ClinicPrompts(split="validation", count=64, seed=200)
    """What it answers for measuring quality; none of it is in calibration."""
    answers: Sampled = Sampled()
    """How it answers calibration's prompts."""
    work: Path = Path("runs/calibration")
    """Where answers are kept."""


class File(Schema):
    """Text of the user's: `aerie.quant.text` has the forms of a line."""

    source: Literal["file"] = "file"
    path: Path
    """JSONL of calibration documents."""
    held_out: Path | None = None
    """JSONL to measure quality on; None not to measure it."""


class MeasuredDraft(Served):
    """A draft whose acceptance is measured in the engine, on the 16-bit model and on its INT4 twin."""

    path: Path
    """Its folder."""


class Recipe(QuantRecipe):
    """What is quantised, how, looking at which text, and with which draft it will be served."""

    calibration: Annotated[Generated | File, Field(discriminator="source")] | None = None
    """None for none, which is enough for `method: rtn` only; quality is then not measured."""
    draft: MeasuredDraft | None = None
    """For its acceptance in the report; None to measure none."""


def documents(model: Path, recipe: Recipe) -> dict[str, list[Document]]:
    """Calibration's and the held-out documents, by name; empty without text. Raises RecipeError, QuantError."""
    match recipe.calibration:
        case None:
            return {}
        case File(path=path, held_out=held_out):
            named = {CALIBRATION: path} | ({} if held_out is None else {HELD_OUT: held_out})
            return {name: read_documents(file, model) for name, file in named.items()}
        case Generated() as generated:
            asked = without(load_prompts(generated.prompts), load_prompts(generated.held_out))
            written = _answers(model, generated, asked, generated.answers.temperature)
            files = {CALIBRATION: written, HELD_OUT: held_out_answers(model, generated)}
            return {name: read_documents(file, model) for name, file in files.items()}


def held_out_answers(model: Path, generated: Generated) -> Path:
    """The file of the model's answers to the held-out prompts, as it is served: at its most likely."""
    return _answers(model, generated, load_prompts(generated.held_out), 0.0)


def _answers(model: Path, generated: Generated, chats: list[Chat], temperature: float) -> Path:
    answers = generated.answers
    settings = {**answers.model_dump(mode="json", exclude={"part"}), "temperature": temperature}
    inputs = {**target_hashes(model), "prompts": hashlib.sha256(repr(chats).encode()).hexdigest()}
    folder = stage(
        generated.work, "answers", settings, inputs, lambda part: regenerate(model, chats, answers, temperature, part)
    )
    return folder / FILE


def run(model: Path, out: Path, recipe: Recipe) -> QuantReport:
    """Quantise with a live bar. Raises QuantError, RecipeError, DraftMismatch, AcceptanceError."""
    if recipe.draft is not None:
        try:
            verify_draft(recipe.draft.path, model)
        except DraftMismatch as error:
            raise QuantError(f"recipe option draft.path: {error}") from error
    texts = documents(model, recipe)
    with Bar(recipe.iterations if recipe.method == "autoround" else 0) as bar:
        report = quantise(model, out, recipe, texts, bar)
    return report if recipe.draft is None else add_acceptance(model, out, acceptance(model, out, recipe.draft))


def acceptance(model: Path, out: Path, draft: MeasuredDraft) -> DraftAcceptance:
    """Serve the draft with either model, one engine after the other, in a process of their own."""
    settings = Served.model_validate(draft.model_dump(exclude={"path"}))
    with Child(_measuring) as child:
        before, after = (
            child.ask(Job(target=target.resolve(), draft=draft.path.resolve(), update=0, settings=settings)).overall
            for target in (model, out)
        )
    return DraftAcceptance(
        draft=draft.path.resolve().name,
        draft_tokens=draft.draft_tokens,
        temperature=draft.temperature,
        prompts=after.requests,
        before=before.length,
        after=after.length,
    )


@contextmanager
def _measuring() -> Iterator[Callable[[Job], Measurement]]:
    yield measure
