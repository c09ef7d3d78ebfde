# SPDX-License-Identifier: Apache-2.0
import random
from collections import Counter

import pytest

from aerie.trainer.clinic.consultation import consult
from aerie.trainer.clinic.corpus import dialogues, prompts
from aerie.trainer.clinic.dialogue import Dialogue, Turn
from aerie.trainer.clinic.knowledge import Disease, load_knowledge
from aerie.trainer.clinic.parse import parse_answer, split_reasoning
from aerie.trainer.clinic.patients import SPLITS, Split, disease_split, sample_patient
from aerie.trainer.clinic.simulator import INTERRUPTIONS

COUNT = 400
STAGES = ["differential", "examinations", "diagnosis"]


def _consultations(split: Split = "train", count: int = COUNT) -> list[Dialogue]:
    return [one for one in dialogues(split, count, seed=3) if len(one.turns) > 2]


def _words(disease: Disease, kind: str, key: str) -> list[str]:
    """The phrases of the knowledge base that a turn may use for the fact `disease/kind/key`."""
    if kind == "icd10":
        return [f"{disease.name} ({disease.icd10})", disease.name]
    if kind == "presentation":
        told = disease.presentations[int(key)]
        return [told.lay, told.clinical]
    if kind == "history":
        item = next(item for item in disease.history if item.id == key)
        return [item.ask, item.lay, item.denial, item.clinical]
    if kind == "examination":
        exam = next(exam for exam in disease.examinations if exam.test == key)
        return [exam.finding, load_knowledge().examinations[key]]
    return [(disease.treatment if kind == "treatment" else disease.red_flags)[int(key)]]


def _states(turn: Turn, fact: str) -> bool:
    disease, kind, *key = fact.split("/")
    text = f"{turn.reasoning} {turn.content}".lower()
    return any(words.lower() in text for words in _words(load_knowledge().diseases[disease], kind, *(key or [""])))


def test_the_same_seed_gives_the_same_documents() -> None:
    assert list(dialogues("train", 50, seed=1)) == list(dialogues("train", 50, seed=1))
    assert list(dialogues("train", 50, seed=1)) != list(dialogues("train", 50, seed=2))


def test_a_consultation_runs_through_all_stages() -> None:
    for one in _consultations():
        kinds = [turn.kind for turn in one.turns if turn.role == "assistant"]
        assert kinds[:-3] == ["inquiry"] * len(kinds[:-3])
        assert len(kinds) >= 6
        assert kinds[-3:] == STAGES
        assert [turn.role for turn in one.turns] == ["user", "assistant"] * len(kinds)


def test_every_answer_parses_as_its_kind() -> None:
    for one in dialogues("train", COUNT, seed=3):
        for turn in one.turns:
            if turn.role == "assistant":
                assert parse_answer(turn.content) == turn.kind


def test_every_fact_that_a_turn_claims_is_in_its_text_and_in_the_base() -> None:
    stated = 0
    for one in dialogues("train", COUNT, seed=3):
        for turn in one.turns:
            for fact in turn.facts:
                assert _states(turn, fact), (fact, turn)
                stated += 1
    assert stated > 10 * COUNT


def test_critical_items_are_always_asked() -> None:
    for one in _consultations():
        asked = {fact for turn in one.turns if turn.kind == "answer" for fact in turn.facts}
        disease = load_knowledge().diseases[one.disease]
        assert {f"{disease.id}/history/{item.id}" for item in disease.history if item.critical} <= asked


def test_one_patient_in_four_interrupts_half_of_them_in_mid_turn() -> None:
    consultations = _consultations(count=3000)
    places = Counter[str]()
    for one in consultations:
        for turn in one.turns:
            for question in INTERRUPTIONS:
                if question in turn.content:
                    places["end" if turn.content.endswith(question) else "middle"] += 1
    share = sum(places.values()) / len(consultations)
    assert share == pytest.approx(0.25, abs=0.03)
    assert places["end"] / sum(places.values()) == pytest.approx(0.5, abs=0.08)


def test_splits_share_no_patient_and_no_unseen_disease() -> None:
    patients = {split: set[str]() for split in SPLITS}
    for split in SPLITS:
        rng = random.Random(5)
        patients[split] = {sample_patient(rng, split).key for _ in range(COUNT)}
    assert not patients["train"] & patients["held_out"]
    assert not patients["train"] & patients["validation"]
    assert not patients["validation"] & patients["held_out"]
    belongs = disease_split(load_knowledge())
    assert Counter(belongs.values()) == {"train": len(belongs) - 12, "validation": 6, "held_out": 6}
    assert all(belongs[one.disease] == "train" for one in dialogues("train", COUNT, seed=3))
    unseen = dialogues("held_out", 50, seed=3, unseen_diseases=True)
    assert all(belongs[one.disease] == "held_out" for one in unseen)


def test_a_consultation_replays_from_its_source_of_randomness() -> None:
    patient = sample_patient(random.Random(7), "train")
    first, second = (consult(patient, load_knowledge(), random.Random(9)) for _ in range(2))
    assert first == second


def test_prompts_end_before_the_answer_they_expect() -> None:
    chosen = prompts("held_out", 60, seed=0)
    assert len(chosen) == 60
    for prompt in chosen:
        assert prompt.messages[-1]["role"] == "user"
        assert parse_answer(prompt.reference) == prompt.expected
    assert {prompt.expected for prompt in chosen} == {"inquiry", *STAGES}


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("<think>\n\n</think>\n\nI note fever. Do you smoke?", ("", "I note fever. Do you smoke?")),
        ("<think>\nTwo words.\n</think>\n\nAdvice: rest.", ("Two words.", "Advice: rest.")),
        ("<think>\nnever closed", None),
        ("no reasoning at all", None),
    ],
)
def test_reasoning_is_split_from_the_answer(text: str, expected: tuple[str, str] | None) -> None:
    assert split_reasoning(text) == expected


@pytest.mark.parametrize("text", ["", "I note fever.", "Diagnosis: flu", "Advice: rest", "Hello! How are you?"])
def test_malformed_answers_parse_as_nothing(text: str) -> None:
    assert parse_answer(text) is None
