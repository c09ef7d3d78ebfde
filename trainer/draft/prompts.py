# SPDX-License-Identifier: Apache-2.0
"""Prompts: chats that end with a user's turn, which the target is to answer.

A file holds one chat a line (JSONL) or all of them in one JSON list. A chat is {"messages": [{"role", "content"}]},
ShareGPT's {"conversations": [{"from", "value"}]}, or {"prompt": "..."}; an "id" beside it names its conversation, a
"domain" what it is about.
"""

from collections.abc import Iterable
from typing import Any

from aerie.json_items import ItemsError, json_items
from aerie.trainer.draft.recipe import ClinicPrompts, JsonlPrompts
from aerie.trainer.recipe import RecipeError

SPEAKERS = {"human": "user", "user": "user", "gpt": "assistant", "assistant": "assistant", "system": "system"}
"""ShareGPT's names."""
_SHAPES = (
    '{"messages": [{"role": ..., "content": ...}]}, {"conversations": [{"from": ..., "value": ...}]} or {"prompt"}'
)


class Chat(list[dict[str, str]]):
    """A chat's messages, each with `role` and `content`."""

    def __init__(
        self, messages: Iterable[dict[str, str]], conversation: str | None = None, domain: str | None = None
    ) -> None:
        super().__init__(messages)
        self.domain = domain
        """What it is about, for figures by domain: a file's "domain", the clinic's department."""
        self.conversation = conversation
        """What its file calls the conversation that it is a piece of, where the file does."""

    @property
    def opening(self) -> str:
        """The first user turn, white space aside."""
        return " ".join(next(turn["content"] for turn in self if turn["role"] == "user").split())


def load_prompts(prompts: ClinicPrompts | JsonlPrompts) -> list[Chat]:
    """The chats a recipe names, in a fixed order. Raises RecipeError."""
    if isinstance(prompts, ClinicPrompts):
        from aerie.trainer.clinic import corpus

        drawn = corpus.prompts(prompts.split, prompts.count, prompts.seed)
        return [Chat(prompt.messages, domain=prompt.department) for prompt in drawn]
    return _read(prompts)


def without(training: list[Chat], evaluation: list[Chat]) -> list[Chat]:
    """The training chats of other conversations than the evaluation's. Raises RecipeError if none are left.

    Chats are of one conversation when they open with the same user turn or when their files call it the same: a longer
    or a regenerated piece of an evaluation's conversation would show its answer just as well.
    """
    openings = {chat.opening for chat in evaluation}
    names = {chat.conversation for chat in evaluation} - {None}
    kept = [chat for chat in training if chat.opening not in openings and chat.conversation not in names]
    if not kept:
        raise RecipeError("prompts: every conversation is one of validation's too; give other prompts")
    return kept


def _read(prompts: JsonlPrompts) -> list[Chat]:
    chats = list[Chat]()
    try:
        for item, where in json_items(prompts.path):
            if prompts.count is not None and len(chats) == prompts.count:
                break
            chats.append(_chat(item, f"prompts.path: {where}"))
    except ItemsError as error:
        raise RecipeError(f"prompts.path: {error}; expected {_SHAPES}") from error
    if not chats:
        raise RecipeError(f"prompts.path: {prompts.path} holds no chat")
    return chats


def _chat(item: object, where: str) -> Chat:
    try:
        if not isinstance(item, dict):
            raise TypeError(f"object expected, found {type(item).__name__}")
        turns = _turns(item)
    except (ValueError, TypeError, KeyError) as error:
        raise RecipeError(f"{where}: expected {_SHAPES} ({error!r})") from error
    # What the target is to say comes from the target.
    while turns and turns[-1]["role"] == "assistant":
        turns.pop()
    if not turns or turns[-1]["role"] != "user":
        raise RecipeError(f"{where}: a prompt must end with a user turn, but for the assistant's answer to it")
    name, domain = item.get("id", item.get("conversation_id")), item.get("domain")
    return Chat(turns, None if name is None else str(name), None if domain is None else str(domain))


def _turns(item: dict[str, Any]) -> list[dict[str, str]]:
    if "messages" in item:
        return [{"role": _text(turn["role"]), "content": _text(turn["content"])} for turn in item["messages"]]
    if "conversations" in item:
        turns = item["conversations"]
        return [{"role": SPEAKERS[turn["from"].lower()], "content": _text(turn["value"])} for turn in turns]
    return [{"role": "user", "content": _text(item["prompt"])}]


def _text(content: object) -> str:
    """A string, or OpenAI's list of text parts."""
    if isinstance(content, list):
        content = "".join(part["text"] for part in content)
    if not isinstance(content, str):
        raise TypeError(f"text expected, found {type(content).__name__}")
    return content
