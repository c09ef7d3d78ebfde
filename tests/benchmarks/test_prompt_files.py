# SPDX-License-Identifier: Apache-2.0
"""Lines as the data sets publish them, fields that are not read included."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from aerie.benchmarks.prompt_files import UNRESOLVED, PromptsError, read_chats
from aerie.benchmarks.prompts import by_domain, clinic_domains, held_out

USER = [{"role": "user", "content": "Hello"}]
SPEC_BENCH = {"question_id": 81, "category": "writing", "turns": ["Hello", "Shorter, please"], "reference": []}
SPEED_BENCH = {
    "question_id": "a1", "category": "coding", "sub_category": "python", "turns": ["Hello"], "source": "hub/set",
    "src_id": "7", "difficulty": "low_entropy", "multiturn": False,
}  # fmt: skip
SHARE_GPT = {"id": "x_0", "conversations": [{"from": "human", "value": "Hello"}, {"from": "gpt", "value": "Hi"}]}
HEALTH_BENCH = {
    "prompt_id": "b2", "prompt": USER, "rubrics": [{"criterion": "c", "points": 5, "tags": ["axis:accuracy"]}],
    "example_tags": ["theme:hedging", "physician_agreed_category:x"], "canary": "z",
}  # fmt: skip
HUMAN_EVAL = {"task_id": "HumanEval/0", "prompt": "Hello", "entry_point": "f", "canonical_solution": "", "test": ""}
PREPARED = {"category": "rag", "sub_category": "s", "messages": [*USER, {"role": "user", "content": "And?"}]}


def write(path: Path, items: Sequence[Any]) -> Path:
    path.write_text("\n".join(one if isinstance(one, str) else json.dumps(one) for one in items))
    return path


@pytest.mark.parametrize(
    ("line", "domain"),
    [
        ({"messages": USER}, None),
        ({"messages": USER, "domain": "inquiry"}, "inquiry"),
        ({"messages": [{"role": "user", "content": [{"type": "text", "text": "Hello"}]}]}, None),
        (PREPARED, "rag"),
        (SHARE_GPT, None),
        (SPEC_BENCH, "writing"),
        (SPEED_BENCH, "coding"),
        ({"question": "Hello", "answer": "#### 4"}, None),
        (HUMAN_EVAL, None),
        (HEALTH_BENCH, "hedging"),
    ],
)
def test_each_form_gives_the_users_turn_and_its_domain(
    tmp_path: Path, line: Mapping[str, Any], domain: str | None
) -> None:
    (chat,) = read_chats(write(tmp_path / "prompts.jsonl", [line]))
    assert list(chat) == USER
    assert chat.domain == domain


def test_a_json_list_is_read_as_well_and_byte_order_marks_are_no_matter(tmp_path: Path) -> None:
    path = tmp_path / "prompts.json"
    path.write_text("\ufeff" + json.dumps([SHARE_GPT, SHARE_GPT], indent=2))
    assert len(read_chats(path)) == 2


def test_share_gpt_keeps_the_history_and_leaves_out_what_nobody_asked(tmp_path: Path) -> None:
    turns = [("gpt", "cut off"), ("human", "a"), ("bing", "b"), ("human", "c"), ("gpt", "d")]
    talk = {"conversations": [{"from": speaker, "value": text} for speaker, text in turns]}
    monologue = {"conversations": [{"from": "gpt", "value": "a"}]}
    (chat,) = read_chats(write(tmp_path / "prompts.jsonl", [monologue, "", talk]))
    assert [turn["content"] for turn in chat] == ["a", "b", "c"]
    assert [turn["role"] for turn in chat] == ["user", "assistant", "user"]


@pytest.mark.parametrize(
    ("lines", "said"),
    [
        ([], "holds no prompt"),
        (["", " "], "holds no prompt"),
        ([SPEC_BENCH, "{oops"], "line 2 is not JSON"),
        ([{"messages": USER}, "", {"messages": 3}], r"line 3 \(chat\): `messages`: input should be a valid list"),
        ([{"messages": [{"role": "user"}]}], r"line 1 \(chat\): `content` is missing"),
        ([{"messages": [{"role": "system", "content": "a"}]}], "no turn is the user's"),
        ([{"conversations": [{"from": "narrator", "value": "a"}]}], "`from` is narrator"),
        ([{"turns": []}], "`turns` is empty"),
        ([{"turns": ["a", 4]}], r"`turns\[1\]`: input should be a valid string"),
        ([{**SPEED_BENCH, "turns": [f"{UNRESOLVED} USING X"]}], "placeholder; have SPEED-Bench's own script"),
        ([{"task_id": "HumanEval/0"}], r"line 1 \(HumanEval\): `prompt` is missing"),
        ([{"prompt_id": "b2", "prompt": "text"}], r"line 1 \(HealthBench\): `prompt`: input should be a valid list"),
        ([{"text": "a", "label": 1}], "line 1 has label, text, and must have one of `messages`"),
        (["[]"], "holds no prompt"),
        (["[4]"], "item 1 is int, not an object"),
        (['[{"turns":'], "is no JSON list"),
        ([SPEC_BENCH, HUMAN_EVAL], "line 2 has `task_id`, and what stands before has `turns`"),
    ],
)
def test_a_bad_file_is_refused_with_the_line_and_what_it_lacks(tmp_path: Path, lines: Sequence[Any], said: str) -> None:
    with pytest.raises(PromptsError, match=said):
        read_chats(write(tmp_path / "prompts.jsonl", lines))


def test_what_is_no_text_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "prompts.parquet"
    path.write_bytes(b"PAR1\xff\xfe\x00")
    with pytest.raises(PromptsError, match="give JSONL or a JSON list"):
        read_chats(path)
    with pytest.raises(PromptsError, match="cannot be read"):
        read_chats(tmp_path / "absent.jsonl")


def test_prompts_are_grouped_by_domain_and_must_suffice(tmp_path: Path) -> None:
    lines = [SPEC_BENCH, {**SPEC_BENCH, "category": "math"}, SPEC_BENCH, {"turns": ["x"]}]
    path = write(tmp_path / "prompts.jsonl", lines)
    assert {name: len(chats) for name, chats in by_domain(1, 0, path).items()} == {"writing": 1, "math": 1, "other": 1}
    assert len(by_domain(5, 0, path)["writing"]) == 2
    with pytest.raises(PromptsError, match="has 4 prompts, 5 are needed; lower the count"):
        held_out(5, 0, path)


def test_the_clinics_domains_are_the_kinds_of_answers_that_are_due() -> None:
    found = clinic_domains(3, seed=1)
    assert list(found) == ["inquiry", "differential", "examinations", "diagnosis", "advice"]
    assert all(len(prompts) == 3 for prompts in found.values())
    assert all(prompt.expected == name for name, prompts in found.items() for prompt in prompts)
    assert {name: prompts[:2] for name, prompts in found.items()} == clinic_domains(2, seed=1)
