# SPDX-License-Identifier: Apache-2.0
"""The passive patient: answers what is asked and volunteers nothing (Baichuan-M3, section on the patient simulator).

Three of four patients are plain. One of four is interruption-injected: once, after an answer, they put a question of
their own, half of them at the end of the turn and half in the middle of it.
"""

import random
from dataclasses import dataclass
from typing import Literal

from aerie.trainer.clinic.dialogue import Turn, capitalised
from aerie.trainer.clinic.knowledge import HistoryItem
from aerie.trainer.clinic.patients import Patient

INTERRUPTED_SHARE = 0.25
GREETINGS = ("Hello doctor,", "Good morning doctor,", "Doctor,")
AFFIRMATIONS = ("Yes,", "Yes doctor,", "That is right,")
DENIALS = ("No,", "No doctor,", "Not really,")
INTERRUPTIONS = (
    "Is it something serious?",
    "Can I go back to work tomorrow?",
    "Will I need an operation?",
    "Is it contagious?",
)

Mode = Literal["plain", "end-of-turn", "mid-turn"]


@dataclass(frozen=True)
class Interruption:
    """When the patient interrupts, with which question, and where in the turn."""

    mode: Mode
    after_answer: int
    question: str


def draw_interruption(rng: random.Random, answers: int) -> Interruption:
    """Choose the patient's mode; `answers` is how many answers they will give."""
    if rng.random() >= INTERRUPTED_SHARE:
        return Interruption("plain", -1, "")
    mode: Mode = "end-of-turn" if rng.random() < 0.5 else "mid-turn"
    # The last answer already ends in the patient's question for the differential.
    return Interruption(mode, rng.randrange(max(1, answers - 1)), rng.choice(INTERRUPTIONS))


class PassivePatient:
    """Plays one patient; deterministic from `rng`."""

    def __init__(self, patient: Patient, rng: random.Random) -> None:
        self.patient = patient
        self._rng = rng

    def opening(self) -> Turn:
        """The complaint in the patient's words."""
        patient = self.patient
        lay = patient.disease.presentations[patient.presentation].lay
        text = f"{self._rng.choice(GREETINGS)} I am {patient.person} and I have {lay}."
        if self._rng.random() < 0.3:
            text += f" I am {patient.background}." if patient.age >= 18 else ""
        return Turn("user", "opening", text, facts=(f"{patient.disease.id}/presentation/{patient.presentation}",))

    def answer(self, item: HistoryItem, disease_id: str, interruption: str = "", mode: Mode = "plain") -> Turn:
        """Answer one question truthfully; what belongs to another disease is denied."""
        present = disease_id == self.patient.disease.id and item.id in self.patient.present
        opener = self._rng.choice(AFFIRMATIONS if present else DENIALS)
        text = f"{opener} {item.lay if present else item.denial}."
        if self._rng.random() < 0.12:
            text += f" {capitalised(self.patient.irrelevant)}."
        if mode == "end-of-turn":
            text = f"{text} {interruption}"
        elif mode == "mid-turn":
            text = f"{interruption} {text}"
        return Turn("user", "answer", text, facts=(f"{disease_id}/history/{item.id}",))

    def results(self, names: dict[str, str]) -> Turn:
        """Bring the results of every examination that the disease knows a finding for."""
        disease = self.patient.disease
        found = "; ".join(f"{names[exam.test]}: {exam.finding}" for exam in disease.examinations)
        facts = tuple(f"{disease.id}/examination/{exam.test}" for exam in disease.examinations)
        return Turn("user", "results", f"Here are the results. {capitalised(found)}. What do I have?", facts=facts)
