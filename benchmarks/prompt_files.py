# SPDX-License-Identifier: Apache-2.0
"""Files of prompts as their makers publish them: JSONL, or one JSON list. A field that it must have tells the form.

| field | form | the prompt | its domain |
|---|---|---|---|
| `messages` | ours; SPEED-Bench, prepared | the chat to its last user turn | `domain`, `category` |
| `conversations` | ShareGPT | the same | the same |
| `turns` | Spec-Bench, SPEED-Bench, MT-Bench | the first turn: the second answers what a model said | `category` |
| `question` | GSM8K | the question | - |
| `task_id` | HumanEval | `prompt` | - |
| `prompt_id` | HealthBench | `prompt`, a chat | the `theme:` in `example_tags` |

Written from the data sets' own descriptions; the fields that are not named here are not read.
"""

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter, ValidationError

from aerie.benchmarks.errors import BenchmarkError
from aerie.json_items import ItemsError, json_items
from aerie.trainer.draft.prompts import SPEAKERS, Chat

MODELS = dict.fromkeys(("chatgpt", "bing", "bard", "model"), "assistant")
"""Names that ShareGPT's users gave the other side."""
UNRESOLVED = "FULL BENCHMARK DATA SHOULD BE FETCHED FROM THE SOURCE"
"""How SPEED-Bench begins a prompt that its licence keeps elsewhere."""
THEME = "theme:"
Fields = Mapping[str, Any]
_TEXT, _TEXTS, _LIST = TypeAdapter(str), TypeAdapter(list[str]), TypeAdapter(list[dict[str, Any]])


class PromptsError(BenchmarkError):
    """Prompts that cannot be read, or too few of them."""


class _FieldError(Exception):
    """What is wrong with a line: the field's name and the reason."""


def _need(fields: Fields, name: str, kind: TypeAdapter[Any]) -> Any:  # noqa: ANN401 - what `kind` makes of it
    if name not in fields:
        raise _FieldError(f"`{name}` is missing")
    try:
        return kind.validate_python(fields[name], strict=True)
    except ValidationError as error:
        first = error.errors()[0]
        inner = "".join(f"[{place}]" for place in first["loc"])
        raise _FieldError(f"`{name}{inner}`: {first['msg'][0].lower()}{first['msg'][1:]}") from error


def _content(turn: Fields, name: str) -> str:
    """A string, or OpenAI's list of text parts."""
    if isinstance(turn.get(name), list):
        return "".join(_need(part, "text", _TEXT) for part in _need(turn, name, _LIST))
    return str(_need(turn, name, _TEXT))


def _messages(fields: Fields, name: str) -> list[dict[str, str]]:
    turns = [
        {"role": str(_need(turn, "role", _TEXT)), "content": _content(turn, "content")}
        for turn in _need(fields, name, _LIST)
    ]
    if len(turns) > 1 and all(turn["role"] == "user" for turn in turns):
        return turns[:1]
    return turns


def _share_gpt(fields: Fields) -> list[dict[str, str]]:
    turns = list[dict[str, str]]()
    for turn in _need(fields, "conversations", _LIST):
        speaker = str(_need(turn, "from", _TEXT)).lower()
        role = (SPEAKERS | MODELS).get(speaker)
        if role is None:
            raise _FieldError(f"`from` is {speaker}; known are {', '.join(sorted(SPEAKERS | MODELS))}")
        # Pages that were cut out of a longer conversation begin with an answer.
        if turns or role != "assistant":
            turns.append({"role": role, "content": _content(turn, "value")})
    return turns


def _first_turn(fields: Fields) -> list[dict[str, str]]:
    turns = _need(fields, "turns", _TEXTS)
    if not turns:
        raise _FieldError("`turns` is empty")
    if turns[0].startswith(UNRESOLVED):
        raise _FieldError("`turns` is a placeholder; have SPEED-Bench's own script fetch the prompts first")
    return _user(turns[0])


def _user(text: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": text}]


FORMS: dict[str, tuple[str, Callable[[Fields], list[dict[str, str]]]]] = {
    "messages": ("chat", lambda fields: _messages(fields, "messages")),
    "conversations": ("ShareGPT", _share_gpt),
    "turns": ("Spec-Bench, SPEED-Bench or MT-Bench", _first_turn),
    "question": ("GSM8K", lambda fields: _user(_need(fields, "question", _TEXT))),
    "task_id": ("HumanEval", lambda fields: _user(_need(fields, "prompt", _TEXT))),
    "prompt_id": ("HealthBench", lambda fields: _messages(fields, "prompt")),
}
"""By the field that tells them: what they are called, and how to read a chat from their fields."""


def _domain(fields: Fields) -> str | None:
    tags = fields.get("example_tags")
    listed = [str(tag) for tag in tags] if isinstance(tags, list) else []
    themes = [tag.removeprefix(THEME) for tag in listed if tag.startswith(THEME)]
    found = fields.get("domain", fields.get("category", themes[0] if themes else None))
    return None if found is None else str(found)


def _items(path: Path) -> Iterator[tuple[object, str]]:
    """What a file lists, and where each piece stands."""
    try:
        yield from json_items(path)
    except ItemsError as error:
        raise PromptsError(str(error)) from error


def _form(fields: Fields, where: str) -> str:
    found = next((name for name in FORMS if name in fields), None)
    if found is None:
        known = "; ".join(f"`{name}` ({title})" for name, (title, _) in FORMS.items())
        raise PromptsError(f"{where} has {', '.join(sorted(fields)) or 'no field'}, and must have one of {known}")
    return found


def read_chats(path: Path) -> list[Chat]:
    """The chats of a file, each up to the user's turn that is to be answered; raises PromptsError.

    ShareGPT has conversations without a user's turn, and those are left out.
    """
    chats, first = list[Chat](), ""
    for item, where in _items(path):
        if not isinstance(item, dict):
            raise PromptsError(f"{where} is {type(item).__name__}, not an object")
        form = _form(item, where)
        first = first or form
        if form != first:
            raise PromptsError(f"{where} has `{form}`, and what stands before has `{first}`: one form a file, please")
        try:
            turns = FORMS[form][1](item)
        except _FieldError as error:
            raise PromptsError(f"{where} ({FORMS[form][0]}): {error}") from error
        while turns and turns[-1]["role"] != "user":
            turns.pop()
        if not turns and form != "conversations":
            raise PromptsError(f"{where} ({FORMS[form][0]}): no turn is the user's")
        if turns:
            chats.append(Chat(turns, domain=_domain(item)))
    if not chats:
        raise PromptsError(f"{path} holds no prompt; give a file with one JSON object a line")
    return chats
