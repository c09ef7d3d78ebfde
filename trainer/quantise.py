# SPDX-License-Identifier: Apache-2.0
"""`aerie quantize` with text: calibration that the model writes itself, kept between runs, or a file of the user's."""

import hashlib
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field

from aerie.quant.convert import HELD_OUT
from aerie.quant.layerwise import CALIBRATION
from aerie.quant.progress import Bar
from aerie.quant.recipe import QuantRecipe
from aerie.quant.report import QuantReport
from aerie.quant.run import quantise
from aerie.quant.text import Document, read_documents
from aerie.trainer.draft.prompts import Chat, load_prompts, without
from aerie.trainer.draft.recipe import Answers, ClinicPrompts, Prompts
from aerie.trainer.draft.regenerate import FILE, regenerate
from aerie.trainer.draft.stages import stage, target_hashes
from aerie.trainer.recipe import Schema


class Generated(Schema):
    """Text that the 16-bit model writes through vLLM, with its chat template, its reasoning kept."""

    source: Literal["generated"] = "generated"
    prompts: Prompts = ClinicPrompts(count=128, seed=200)
    """What it answers for calibration; of several domains, if it serves several."""
    held_out: Prompts = ClinicPrompts(split="validation", count=64, seed=200)
    """What it answers for measuring quality; none of it is in calibration."""
    answers: Answers = Answers(temperature=1.0)
    """How it answers calibration's prompts; sampled, since greedy answers visit little of what it can say."""
    work: Path = Path("runs/calibration")
    """Where answers are kept."""


class File(Schema):
    """Text of the user's: `aerie.quant.text` has the forms of a line."""

    source: Literal["file"] = "file"
    path: Path
    """JSONL of calibration documents."""
    held_out: Path | None = None
    """JSONL to measure quality on; None not to measure it."""


class Recipe(QuantRecipe):
    """What is quantised, how, and looking at which text."""

    calibration: Annotated[Generated | File, Field(discriminator="source")] | None = None
    """None for none, which is enough for `method: rtn` only; quality is then not measured."""


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
    """Quantise with a live bar. Raises QuantError, RecipeError."""
    texts = documents(model, recipe)
    with Bar(recipe.iterations if recipe.method == "autoround" else 0) as bar:
        return quantise(model, out, recipe, texts, bar)
