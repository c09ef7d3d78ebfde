# SPDX-License-Identifier: Apache-2.0
"""The scripted physician: asks, weighs, orders examinations, diagnoses. Every word comes from the knowledge base."""

import random
from dataclasses import dataclass

from aerie.trainer.clinic.dialogue import Turn, capitalised, join_words
from aerie.trainer.clinic.knowledge import Disease, HistoryItem, Knowledge
from aerie.trainer.clinic.patients import Patient

QUESTIONS = 5
REPLY_TO_INTERRUPTION = "I will come to that when I know more."


@dataclass(frozen=True)
class Asked:
    """A question that was put, and whether the patient affirmed it."""

    item: HistoryItem
    disease_id: str
    present: bool


def plan_questions(rng: random.Random, disease: Disease, knowledge: Knowledge) -> list[tuple[HistoryItem, str]]:
    """Which questions to ask, in order: the critical ones, one that would speak for a differential, then others."""
    critical = [(item, disease.id) for item in disease.history if item.critical]
    others = [(item, disease.id) for item in disease.history if not item.critical]
    asked = {item.ask for item in disease.history}
    rival = knowledge.diseases[disease.differentials[0]]
    against = [(item, rival.id) for item in rival.history if item.critical and item.ask not in asked][:1]
    room = max(0, QUESTIONS - len(critical) - len(against))
    chosen = sorted(rng.sample(range(len(others)), min(room, len(others))))
    return [*critical, *against, *(others[index] for index in chosen)]


class ScriptedPhysician:
    """Writes the assistant's side of a consultation."""

    def __init__(self, patient: Patient, knowledge: Knowledge) -> None:
        self.patient = patient
        self.disease = patient.disease
        self.knowledge = knowledge

    @property
    def _complaint(self) -> str:
        return self.disease.presentations[self.patient.presentation].clinical

    def inquire(self, item: HistoryItem, disease_id: str, last: Asked | None, *, interrupted: bool) -> Turn:
        """Note the last answer in clinical words and ask the next question."""
        facts = [f"{disease_id}/history/{item.id}"]
        if last is None:
            noted = f"I note {self._complaint}."
            facts.append(f"{self.disease.id}/presentation/{self.patient.presentation}")
        else:
            noted = f"I note {'' if last.present else 'no '}{last.item.clinical}."
            facts.append(f"{last.disease_id}/history/{last.item.id}")
        reply = f" {REPLY_TO_INTERRUPTION}" if interrupted else ""
        return Turn("assistant", "inquiry", f"{noted}{reply} {item.ask}", facts=tuple(facts))

    def differential(self, history: list[Asked]) -> Turn:
        """Weigh the history and name the candidates, likeliest first."""
        candidates = [self.disease, *(self.knowledge.diseases[name] for name in self.disease.differentials)]
        found = [asked.item.clinical for asked in history if asked.present]
        absent = [asked.item.clinical for asked in history if not asked.present]
        thought = f"{capitalised(self.patient.person)} with {self._complaint}."
        thought += f" Present: {join_words(found)}." if found else " Nothing that I asked for is present."
        thought += f" Absent: {join_words(absent)}." if absent else ""
        thought += f" This fits {self.disease.name} best."
        listed = "\n".join(f"{rank}. {one.name} ({one.icd10})" for rank, one in enumerate(candidates, 1))
        facts = (*(f"{asked.disease_id}/history/{asked.item.id}" for asked in history),
                 *(f"{one.id}/icd10" for one in candidates))  # fmt: skip
        return Turn("assistant", "differential", f"Differential diagnosis:\n{listed}", thought, facts)

    def examine(self) -> Turn:
        """Order the disease's examinations, essential ones first."""
        exams = sorted(self.disease.examinations, key=lambda exam: not exam.essential)
        listed = "\n".join(
            f"- {self.knowledge.examinations[exam.test]}{' (essential)' if exam.essential else ''}" for exam in exams
        )
        facts = tuple(f"{self.disease.id}/examination/{exam.test}" for exam in exams)
        return Turn("assistant", "examinations", f"Please have these examinations:\n{listed}", facts=facts)

    def diagnose(self) -> Turn:
        """Read the results, name the disease, treat it, and say when to come back."""
        disease = self.disease
        shown = join_words([exam.finding for exam in disease.examinations])
        thought = f"The results show {shown}. With {self._complaint} this confirms {disease.name}."
        content = (
            f"Diagnosis: {disease.name} ({disease.icd10})\n"
            f"Treatment: {'; '.join(disease.treatment)}\n"
            f"Come back at once if you notice {join_words(list(disease.red_flags), 'or')}."
        )
        facts = (
            f"{disease.id}/icd10",
            *(f"{disease.id}/examination/{exam.test}" for exam in disease.examinations),
            *(f"{disease.id}/treatment/{index}" for index in range(len(disease.treatment))),
            *(f"{disease.id}/red_flag/{index}" for index in range(len(disease.red_flags))),
        )
        return Turn("assistant", "diagnosis", content, thought, facts)
