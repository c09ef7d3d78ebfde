# SPDX-License-Identifier: Apache-2.0
"""Prompts: chats that end with a user's turn, which the target is to answer."""

import json

from aerie.trainer.draft.recipe import ClinicPrompts, JsonlPrompts
from aerie.trainer.recipe import RecipeError

Chat = list[dict[str, str]]


def load_prompts(prompts: ClinicPrompts | JsonlPrompts) -> list[Chat]:
    """The chats a recipe names, in a fixed order. Raises RecipeError."""
    if isinstance(prompts, ClinicPrompts):
        from aerie.trainer.clinic.corpus import consultation_prompts

        return consultation_prompts(prompts.split, prompts.count, prompts.seed)
    return _read_jsonl(prompts)


def _read_jsonl(prompts: JsonlPrompts) -> list[Chat]:
    try:
        lines = prompts.path.read_text().splitlines()[: prompts.count]
    except OSError as error:
        raise RecipeError(f"prompts.path: {error}") from error
    chats = [_chat(line, f"prompts.path: {prompts.path}:{number}") for number, line in enumerate(lines, 1)]
    if not chats:
        raise RecipeError(f"prompts.path: {prompts.path} holds no chat")
    return chats


def _chat(line: str, where: str) -> Chat:
    try:
        messages = json.loads(line)["messages"]
        chat = [{"role": str(message["role"]), "content": str(message["content"])} for message in messages]
    except (ValueError, TypeError, KeyError) as error:
        raise RecipeError(f'{where}: expected {{"messages": [{{"role": ..., "content": ...}}]}}') from error
    if not chat or chat[-1]["role"] != "user":
        raise RecipeError(f"{where}: a prompt must end with a user turn")
    return chat
