# SPDX-License-Identifier: Apache-2.0
"""Files of chats, turns that the target answers, and what must never be trained on."""

import json
from pathlib import Path

import pytest
from transformers import AutoTokenizer

from aerie.trainer.draft.prompts import Chat, load_prompts, without
from aerie.trainer.draft.recipe import Answers, DraftRecipe, JsonlPrompts
from aerie.trainer.draft.regenerate import read_answers, regenerate, spoken
from aerie.trainer.recipe import RecipeError

USER, ASSISTANT = {"role": "user", "content": "my head hurts"}, {"role": "assistant", "content": "since monday"}
AGAIN = {"role": "user", "content": "what can i do"}


@pytest.mark.parametrize(
    ("item", "chat"),
    [
        ({"messages": [USER]}, [USER]),
        ({"messages": [USER, ASSISTANT]}, [USER]),
        ({"messages": [USER, ASSISTANT, AGAIN, ASSISTANT, ASSISTANT]}, [USER, ASSISTANT, AGAIN]),
        ({"messages": [{"role": "user", "content": [{"type": "text", "text": "my head hurts"}]}]}, [USER]),
        (
            {"conversations": [{"from": "human", "value": "my head hurts"}, {"from": "gpt", "value": "since monday"}]},
            [USER],
        ),
        ({"prompt": "my head hurts"}, [USER]),
    ],
    ids=["chat", "answered", "turns", "parts", "sharegpt", "prompt"],
)
@pytest.mark.parametrize("whole", [False, True], ids=["lines", "list"])
def test_a_prompt_ends_with_the_user(
    tmp_path: Path, item: dict[str, object], chat: list[dict[str, str]], whole: bool
) -> None:
    path = tmp_path / "chats"
    path.write_text(json.dumps([item, item], indent=1) if whole else f"{json.dumps(item)}\n\n{json.dumps(item)}\n")
    assert load_prompts(JsonlPrompts(path=path)) == [chat, chat]
    assert load_prompts(JsonlPrompts(path=path, count=1)) == [chat]


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ('{"prompt": "x"}\n{"messages": 3}', "chats, line 2"),
        ('{"prompt": "x"}\n[]', "chats, line 2"),
        ('{"conversations": [{"from": "martian", "value": "x"}]}', "chats, line 1.*martian"),
        ('{"prompt": null}', "chats, line 1"),
        ('[{"prompt": "x"}, {}]', r"chats, item 2"),
        ('[{"prompt": "x"}', "no JSON list"),
        ('{"messages": [{"role": "assistant", "content": "x"}]}', "chats, line 1.*user turn"),
        ("", "no chat"),
    ],
)
def test_what_is_no_chat_is_named(tmp_path: Path, text: str, named: str) -> None:
    path = tmp_path / "chats"
    path.write_text(text)
    with pytest.raises(RecipeError, match=named):
        load_prompts(JsonlPrompts(path=path))


def test_no_conversation_of_the_evaluation_is_trained_on() -> None:
    held_out = [Chat([USER, ASSISTANT, AGAIN], "a")]
    same_opening = Chat([{"role": "system", "content": "x"}, {"role": "user", "content": " my  head\nhurts"}])
    same_conversation = Chat([AGAIN], "a")
    other = Chat([AGAIN], "b")
    assert without([same_opening, same_conversation, other], held_out) == [other]
    with pytest.raises(RecipeError, match="every conversation"):
        without([same_opening], held_out)


def _answers(**changes: object) -> Answers:
    return Answers.model_validate({"engine": "transformers", "max_tokens": 6, "turns": "all"} | changes)


def test_every_turn_stands_on_the_targets_own_answers(target: Path, tmp_path: Path) -> None:
    first, second = regenerate(target, [Chat([USER, ASSISTANT, AGAIN])], _answers(), 0.0, tmp_path)
    tokenizer = AutoTokenizer.from_pretrained(target)
    said = spoken(tokenizer, first.prompt_ids, first.answer_ids)
    assert said is not None
    assert said != ASSISTANT["content"]
    history = [USER, {"role": "assistant", "content": said}, AGAIN]
    text = tokenizer.apply_chat_template(history, add_generation_prompt=True, tokenize=False)
    assert second.prompt_ids == tokenizer(text, add_special_tokens=False)["input_ids"]
    (only,) = regenerate(target, [Chat([USER])], _answers(), 0.0, tmp_path / "one")
    assert only == first


@pytest.mark.parametrize(
    ("prompt", "answer", "said"),
    [
        ("hello", "<think>my head</think>\n\nsince monday<|im_end|>", "since monday"),
        ("hello<think>\n", "my head</think>since monday", "since monday"),
        ("hello<think>\n", "my head", None),
        ("hello", "since monday", "since monday"),
    ],
    ids=["whole", "opened by the template", "cut off", "none"],
)
def test_reasoning_is_no_history(target: Path, prompt: str, answer: str, said: str | None) -> None:
    tokenizer = AutoTokenizer.from_pretrained(target)
    ids = [tokenizer(text, add_special_tokens=False)["input_ids"] for text in (prompt, answer)]
    assert spoken(tokenizer, *ids) == said


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_answers_go_on_from_the_parts_that_were_saved(recipe: DraftRecipe, tmp_path: Path, temperature: float) -> None:
    chats = load_prompts(recipe.prompts)[:5]
    whole = regenerate(recipe.target, chats, _answers(part=2), temperature, tmp_path / "whole")
    killed = tmp_path / "killed"
    regenerate(recipe.target, chats[:2], _answers(part=2), temperature, killed)
    saved = (killed / "answers.jsonl").rename(killed / "part_0000000.jsonl").read_bytes()
    assert regenerate(recipe.target, chats, _answers(part=2), temperature, killed) == whole
    assert (killed / "answers.jsonl").read_bytes().startswith(saved)
    assert [path.name for path in killed.iterdir()] == ["answers.jsonl"]
    assert read_answers(killed / "answers.jsonl") == whole


def test_prompts_that_leave_no_room_are_counted(
    target: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    longer = [{"role": "user", "content": "hello doctor " * 40}]
    answers = _answers(turns="last")
    (answered,) = regenerate(target, [Chat(longer), Chat([USER])], answers, 0.0, tmp_path)
    assert len(answered.answer_ids) <= 6
    lines = capsys.readouterr().err.splitlines()
    assert lines[0] == "answers: 0 of 2 answers"
    assert lines[-1] == (
        "answers: 1 are left out, as their prompts leave no room for 6 (answers.max_tokens) of 127 positions"
    )


def test_answers_need_room(target: Path, tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=r"answers\.max_tokens"):
        regenerate(target, [Chat([USER])], _answers(max_tokens=126), 0.0, tmp_path)
