# SPDX-License-Identifier: Apache-2.0
"""The prompts of every benchmark: held-out consultations of the clinic, or a file of one's own (`prompt_files.py`)."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, get_args

from aerie.benchmarks.prompt_files import PromptsError as PromptsError
from aerie.benchmarks.prompt_files import read_chats
from aerie.draft_models import offline

if TYPE_CHECKING:
    from aerie.trainer.clinic.corpus import Prompt as ClinicPrompt

Messages = list[dict[str, str]]
UNNAMED = "other"
"""Domain of the prompts of a file that names none."""


@dataclass(frozen=True)
class Prompt:
    """A chat rendered with the model's template up to where the assistant speaks: its text and its token ids."""

    text: str
    token_ids: tuple[int, ...]


def read_messages(path: Path) -> list[Messages]:
    """The chats of a file; raises PromptsError."""
    return [list(chat) for chat in read_chats(path)]


def _first(chats: Sequence[Messages], count: int, path: Path) -> list[Messages]:
    if len(chats) < count:
        raise PromptsError(f"{path} has {len(chats)} prompts, {count} are needed; lower the count or add prompts")
    return list(chats[:count])


def held_out(count: int, seed: int, path: Path | None = None) -> list[Messages]:
    """`count` chats that end in a user's turn: the clinic's held-out split, or the first ones of `path`."""
    if path is None:
        from aerie.trainer.clinic.corpus import consultation_prompts

        return consultation_prompts("held_out", count, seed)
    return _first(read_messages(path), count, path)


def clinic_domains(count: int, seed: int) -> dict[str, list["ClinicPrompt"]]:
    """`count` held-out prompts of the clinic for each kind of answer that is due: inquiry, differential, ...

    Consultations are with held-out patients. Advice names no patient, so it is about diseases that are held out.
    """
    from aerie.trainer.clinic import corpus
    from aerie.trainer.clinic.parse import AnswerKind

    found: dict[str, list[ClinicPrompt]] = {kind: [] for kind in get_args(AnswerKind)}
    drawn = 0
    while any(len(prompts) < count for prompts in found.values()):
        # A longer draw begins with the shorter one.
        drawn = max(2 * drawn, 8 * count)
        consultations = corpus.prompts("held_out", drawn, seed)
        unseen = corpus.prompts("held_out", drawn, seed, unseen_diseases=True)
        advice = [prompt for prompt in unseen if prompt.expected == "advice"]
        found = {
            kind: [prompt for prompt in (*consultations, *advice) if prompt.expected == kind][:count] for kind in found
        }
    return found


def by_domain(count: int, seed: int, path: Path | None = None) -> dict[str, list[Messages]]:
    """Prompts by domain: `count` for each of the clinic's, or the first `count` of each that `path` names."""
    if path is None:
        return {name: [one.messages for one in found] for name, found in clinic_domains(count, seed).items()}
    found: dict[str, list[Messages]] = {}
    for chat in read_chats(path):
        found.setdefault(chat.domain or UNNAMED, []).append(list(chat))
    return {name: chats[:count] for name, chats in found.items()}


def render(model: Path, chats: Iterable[Messages]) -> list[Prompt]:
    """Apply the chat template of `model` to each chat."""
    return [Prompt(*one) for one in offline.render(model, list(chats))]
