# SPDX-License-Identifier: Apache-2.0
"""What a head is trained on: answers and captured states, computed once for all heads of the same data."""

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from aerie.artefacts import sha256_tree
from aerie.draft_models.checkpoint import identify_target
from aerie.draft_models.contract import DraftConfig, TargetIdentity
from aerie.draft_models.modeling import Eagle3Head
from aerie.trainer.draft import vocab
from aerie.trainer.draft.capture import TEACHER, capture, read_description
from aerie.trainer.draft.data import Captured
from aerie.trainer.draft.initial import initial_head, warm_start
from aerie.trainer.draft.prompts import Chat, load_prompts, without
from aerie.trainer.draft.recipe import DraftRecipe, Head
from aerie.trainer.draft.regenerate import FILE, asked_for, read_answers, regenerate
from aerie.trainer.draft.stages import stage, target_hashes
from aerie.trainer.draft.stream import Streamed, open_source
from aerie.trainer.draft.support import check_basis, check_same_vocabulary, check_served
from aerie.trainer.draft.target import Teacher
from aerie.trainer.recipe import RecipeError

Make = Callable[[Path], object]


@dataclass(frozen=True)
class Prepared:
    """Whatever their gate, seed and optimisation, heads share this; a context manager, as states may be streamed."""

    folders: tuple[Path, Path]
    """Captured states of the training and of the validation prompts."""
    data: Captured | Streamed
    validation: Captured
    teacher: Teacher
    description: Mapping[str, Any]
    target: TargetIdentity
    target_files: Mapping[str, str]
    """SHA-256 of the target's files."""

    @classmethod
    def of(cls, recipe: DraftRecipe, make: bool = True) -> Self:
        """Answer the prompts and capture the states where that was not done before.

        With `make` false, data that is not there yet is refused. Raises RecipeError, DataError.
        """
        files = target_hashes(recipe.target)
        validated = load_prompts(recipe.validation)
        trained = without(load_prompts(recipe.prompts), validated)
        captured = prepare(recipe, trained, recipe.answers.temperature, files, make)
        # Simulated acceptance takes the answer's tokens for the target's choices: validation answers are greedy.
        # Its states are read once an epoch, so they are kept whatever the budget.
        kept = recipe.model_copy(update={"capture": recipe.capture.model_copy(update={"disk_budget_gib": None})})
        held_back = prepare(kept, validated, 0.0, files, make)
        data = open_source(captured, recipe.target, recipe.capture)
        description = read_description(captured)
        left_out = {
            "left_out_as_too_long": asked_for(trained, recipe.answers) - description["documents"],
            "left_out_as_too_short": description["documents"] - len(data),
        }
        if isinstance(data, Streamed) and not make:
            data.close()
            raise RecipeError(
                "capture.disk_budget_gib: the states do not fit and would be streamed by an engine of every process; "
                "raise the budget, or train with one process"
            )
        return cls(
            folders=(captured, held_back),
            data=data,
            validation=Captured(held_back),
            teacher=Teacher.load(captured / TEACHER),
            description=description | left_out,
            target=identify_target(recipe.target),
            target_files=files,
        )

    @property
    def hashes(self) -> dict[str, str]:
        """One hash of everything captured, by folder."""
        return {folder.name: digest(folder) for folder in self.folders}

    def head(self, head: Head, seed: int, target: Path) -> Eagle3Head:
        """A head before its first update: new, or the one the recipe starts from."""
        config = head_config(head, self.description, self.target)
        answered, anywhere = (self.data.token_counts(config.vocab_size, supervised_only=only) for only in (True, False))
        first = initial_head(config, self.teacher, vocab.choose(answered, anywhere, config.draft_vocab_size), seed)
        if head.start is not None:
            check_same_vocabulary(head.start, target)
            warm_start(first, head.start, target)
        return first

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        if isinstance(self.data, Streamed):
            self.data.close()


def prepare(
    recipe: DraftRecipe, chats: list[Chat], temperature: float, files: Mapping[str, str], make: bool = True
) -> Path:
    """The folder of captured states for these prompts, made unless it exists. Raises RecipeError, DataError."""

    def answer(folder: Path) -> None:
        check_basis(recipe.target)
        check_served(recipe.target)
        regenerate(recipe.target, chats, recipe.answers, temperature, folder)

    asked: dict[str, Any] = {
        "answers": {**recipe.answers.model_dump(mode="json", exclude={"part"}), "temperature": temperature}
    }
    # The prompts themselves, not what they were asked by: a clinic or a file that changed makes new answers.
    inputs = {**files, "prompts": hashlib.sha256(repr(chats).encode()).hexdigest()}
    answers = stage(recipe.work, "answers", asked, inputs, answer if make else _refuse)
    asked["capture"] = recipe.capture.model_dump(mode="json")
    answered = read_answers(answers / FILE)
    inputs["answers"] = digest(answers)

    def states(folder: Path) -> None:
        capture(recipe.target, answered, recipe.capture, folder)

    return stage(recipe.work, "capture", asked, inputs, states if make else _refuse)


def _refuse(folder: Path) -> None:
    raise RecipeError(
        f"work: {folder.parent} does not hold this recipe's answers and states yet, and several processes would get in "
        f"each other's way; make them first: aerie train draft --recipe FILE --prepare"
    )


def head_config(head: Head, description: Mapping[str, Any], target: TargetIdentity | None) -> DraftConfig:
    """The head's shape: what the recipe gives, the target's where it is silent."""
    shape = description["target"]
    return DraftConfig(
        hidden_size=shape["hidden_size"],
        target_hidden_size=shape["hidden_size"],
        intermediate_size=head.intermediate_size or shape["intermediate_size"],
        num_attention_heads=head.num_attention_heads or shape["num_attention_heads"],
        num_key_value_heads=head.num_key_value_heads or shape["num_key_value_heads"],
        head_dim=shape["head_dim"],
        vocab_size=shape["vocab_size"],
        draft_vocab_size=min(head.draft_vocab_size or shape["vocab_size"], shape["vocab_size"]),
        aux_hidden_state_layer_ids=tuple(description["aux_hidden_state_layer_ids"]),
        gate=head.gate,
        qk_norm=head.attention == "qwen3",
        rms_norm_eps=shape["rms_norm_eps"],
        rope_theta=shape["rope_theta"],
        max_position_embeddings=shape["max_position_embeddings"],
        norm_before_residual=head.norm_before_residual,
        fc_norm=head.fc_norm,
        norm_output=head.norm_output,
        target=target,
    )


def digest(folder: Path) -> str:
    """One hash of a stage's files, but for its provenance."""
    return short_hash(sha256_tree(folder, "[!p]*"))


def short_hash(*values: Mapping[str, object]) -> str:
    """Names a folder by what shapes it."""
    return hashlib.sha256(repr([dict(value) for value in values]).encode()).hexdigest()[:16]
