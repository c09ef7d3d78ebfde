# SPDX-License-Identifier: Apache-2.0
"""The target answers the prompts, so that the head learns the distribution it will meet when served.

An answer is kept as token ids, never as text that would be tokenised anew: what follows a prompt in training is
exactly what the engine produced, reasoning and end-of-turn token included. Only where it becomes the history of a later
turn is it text, without its reasoning, as chat templates render it.
"""

import json
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from aerie.artefacts import write_atomic
from aerie.progress import Bar
from aerie.trainer.draft.answer import Answer, answer_in_process, answer_with_vllm
from aerie.trainer.draft.child import Child, Counter, new_counter
from aerie.trainer.draft.prompts import Chat
from aerie.trainer.draft.recipe import Answers
from aerie.trainer.draft.support import check_tokenizer
from aerie.trainer.recipe import RecipeError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

REASONING = ("<think>", "</think>")
TAIL = 16
"""Tokens of a prompt among which its last mark is looked for."""
FILE = "answers.jsonl"


@dataclass(frozen=True)
class Answered:
    """One prompt as the engine sees it, and the target's answer."""

    prompt_ids: list[int]
    answer_ids: list[int]

    @property
    def token_ids(self) -> list[int]:
        """The whole document."""
        return self.prompt_ids + self.answer_ids

    def __len__(self) -> int:
        return len(self.prompt_ids) + len(self.answer_ids)


def regenerate(target: Path, chats: list[Chat], answers: Answers, temperature: float, folder: Path) -> list[Answered]:
    """Answer every chat into `folder`'s `answers.jsonl`; deterministic for a given engine, machine and seed.

    Until all are there, parts of `answers.part` chats lie beside it, and a later call goes on from them.
    Raises RecipeError.
    """
    if (folder / FILE).exists():
        for path in folder.glob("part_*.jsonl"):
            path.unlink()
        return read_answers(folder / FILE)
    check_tokenizer(target)
    turns = _Turns(target, answers)
    starts = range(0, len(chats), answers.part)
    paths = {start: folder / f"part_{start:07}.jsonl" for start in starts}
    if missing := [start for start in starts if not paths[start].exists()]:
        asked = {start: asked_for(chats[start : start + answers.part], answers) for start in starts}
        counter = new_counter(sum(count for start, count in asked.items() if start not in missing))
        bar = Bar("answers", sum(asked.values()), "answers", done=counter.value, count=lambda: int(counter.value))
        with bar, _engine(target, answers, temperature, turns.context, counter) as ask:
            done = int(counter.value)
            for start in missing:
                seed = answers.seed + start * turns.stride
                write_answers(paths[start], turns.answer(chats[start : start + answers.part], seed, ask))
                # Those without room count as done; while the part was answered, the engine counted.
                counter.value = done = done + asked[start]
    everything = [one for path in paths.values() for one in read_answers(path)]
    if not everything:
        room = f"{answers.max_tokens} of {turns.context} positions"
        raise RecipeError(f"answers.max_tokens: no prompt leaves room for {room}")
    if left_out := asked_for(chats, answers) - len(everything):
        room = f"{answers.max_tokens} (answers.max_tokens) of {turns.context} positions"
        print(f"answers: {left_out} are left out, as their prompts leave no room for {room}", file=sys.stderr)
    write_answers(folder / FILE, everything)
    for path in paths.values():
        path.unlink()
    return everything


def write_answers(path: Path, answered: list[Answered]) -> None:
    """One JSON object a line."""
    lines = [json.dumps({"prompt_ids": one.prompt_ids, "answer_ids": one.answer_ids}) + "\n" for one in answered]
    write_atomic(path, "".join(lines))


def read_answers(path: Path) -> list[Answered]:
    """What `write_answers` wrote."""
    return [Answered(**json.loads(line)) for line in path.read_text().splitlines()]


def places(chat: Chat, answers: Answers) -> list[int]:
    """Where in a chat the answers belong: its assistant turns, if all are asked for, and its end."""
    if answers.turns == "last":
        return [len(chat)]
    return [index for index, turn in enumerate(chat) if index and turn["role"] == "assistant"] + [len(chat)]


def asked_for(chats: list[Chat], answers: Answers) -> int:
    """Answers that these chats ask for, those that find no room included."""
    return sum(len(places(chat, answers)) for chat in chats)


class _Turns:
    """Chats as prompts, turn by turn."""

    stride = 64
    """Seeds of one chat: its turns beyond that share theirs with the next chat's, which does no harm."""

    def __init__(self, target: Path, answers: Answers) -> None:
        from transformers import AutoConfig, AutoTokenizer

        self._tokenizer: Any = AutoTokenizer.from_pretrained(target)
        self._answers = answers
        # A place is left for the token that capture's engine adds to a whole document.
        self.context = AutoConfig.from_pretrained(target).get_text_config().max_position_embeddings - 1

    def answer(self, chats: list[Chat], seed: int, ask: Answer) -> list[Answered]:
        """Documents in the order of chats, and of turns within a chat. A chat ends where its context is full."""
        found: list[list[Answered]] = [[] for _ in chats]
        histories = {index: list(chat) for index, chat in enumerate(chats)}
        for turn in range(max(map(len, chats), default=0)):
            asked = self._asked(chats, histories, turn)
            if not asked:
                break
            seeds = [seed + index * self.stride + turn for index in asked]
            generated = ask(list(zip(asked.values(), seeds, strict=True)))
            for (index, prompt), ids in zip(asked.items(), generated, strict=True):
                found[index].append(Answered(prompt, ids))
                said = spoken(self._tokenizer, prompt, ids)
                place = places(chats[index], self._answers)[turn]
                if said is not None and place < len(chats[index]):
                    histories[index][place] = {"role": "assistant", "content": said}
                elif said is None:
                    # Cut off while it reasoned: there is nothing that a later turn could refer to.
                    del histories[index]
        return [one for documents in found for one in documents]

    def _asked(self, chats: list[Chat], histories: dict[int, list[dict[str, str]]], turn: int) -> dict[int, list[int]]:
        """Token ids of each chat's prompt for its next answer; chats without one, or without room for it, leave."""
        asked = {}
        for index in list(histories):
            ends = places(chats[index], self._answers)
            if turn < len(ends):
                ids = self._render(histories[index][: ends[turn]])
                if len(ids) + self._answers.max_tokens <= self.context:
                    asked[index] = ids
                    continue
            del histories[index]
        return asked

    def _render(self, messages: list[dict[str, str]]) -> list[int]:
        text = self._tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
        ids: list[int] = self._tokenizer(text, add_special_tokens=False)["input_ids"]
        return ids


def spoken(tokenizer: "PreTrainedTokenizerBase", prompt_ids: list[int], answer_ids: list[int]) -> str | None:
    """An answer's text without its reasoning, as a chat template would show it later; None if it never came to it."""
    opening, closing = REASONING
    # A template may have opened the reasoning at the prompt's end.
    before, whole = str(tokenizer.decode(prompt_ids[-TAIL:])), str(tokenizer.decode(answer_ids))
    if (before.rstrip().endswith(opening) or opening in whole) and closing not in whole:
        return None
    # By token first: where the marks are special tokens, they are not in the text.
    mark = tokenizer.convert_tokens_to_ids(closing)
    if mark in answer_ids:
        answer_ids = answer_ids[len(answer_ids) - answer_ids[::-1].index(mark) :]
    text = str(tokenizer.decode(answer_ids, skip_special_tokens=True))
    return text.rpartition(closing)[2].lstrip("\n")


@contextmanager
def _engine(target: Path, answers: Answers, temperature: float, context: int, counter: Counter) -> Iterator[Answer]:
    if answers.engine == "transformers":
        with answer_in_process(target, answers, temperature, counter) as ask:
            yield ask
    else:
        opened: Callable[..., Any] = answer_with_vllm
        with Child(opened, target, answers, temperature, context, counter) as child:
            yield child.ask
