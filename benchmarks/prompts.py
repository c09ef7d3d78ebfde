# SPDX-License-Identifier: Apache-2.0
"""The prompts of every benchmark: held-out consultations of the clinic, or a file of one's own."""

import json
from dataclasses import dataclass
from pathlib import Path

from pydantic import TypeAdapter, ValidationError

from aerie.benchmarks.errors import BenchmarkError
from aerie.draft_models import offline

Messages = list[dict[str, str]]


class PromptsError(BenchmarkError):
    """Prompts that cannot be read, or too few of them."""


@dataclass(frozen=True)
class Prompt:
    """A chat rendered with the model's template up to where the assistant speaks: its text and its token ids."""

    text: str
    token_ids: tuple[int, ...]


def read_messages(path: Path) -> list[Messages]:
    """Chats from a JSONL file with one `{"messages": [...]}` a line; raises PromptsError."""
    adapter = TypeAdapter(Messages)
    try:
        lines = path.read_text().splitlines()
        return [adapter.validate_python(json.loads(line)["messages"]) for line in lines if line.strip()]
    except (OSError, json.JSONDecodeError, KeyError, TypeError, ValidationError) as error:
        raise PromptsError(f"{path}: {error}") from error


def held_out(count: int, seed: int, path: Path | None = None) -> list[Messages]:
    """`count` chats that end in a user's turn: the clinic's held-out split, or the first ones of `path`."""
    if path is None:
        from aerie.trainer.clinic.corpus import consultation_prompts

        return consultation_prompts("held_out", count, seed)
    chats = read_messages(path)
    if len(chats) < count:
        raise PromptsError(f"{path} has {len(chats)} prompts, {count} are needed; lower the count or add prompts")
    return chats[:count]


def render(model: Path, chats: list[Messages]) -> list[Prompt]:
    """Apply the chat template of `model` to each chat."""
    return [Prompt(*one) for one in offline.render(model, chats)]
