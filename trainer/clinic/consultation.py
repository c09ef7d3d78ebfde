# SPDX-License-Identifier: Apache-2.0
"""Whole dialogues: a consultation from complaint to diagnosis, and a single question of health advice."""

import random

from aerie.trainer.clinic.dialogue import Dialogue, Turn, join_words
from aerie.trainer.clinic.knowledge import Disease, Knowledge
from aerie.trainer.clinic.patients import Patient
from aerie.trainer.clinic.physician import Asked, ScriptedPhysician, plan_questions
from aerie.trainer.clinic.simulator import PassivePatient, draw_interruption

ASK_DIFFERENTIAL = "What could it be?"
ASK_EXAMINATIONS = "Which examinations do I need?"


def consult(patient: Patient, knowledge: Knowledge, rng: random.Random) -> Dialogue:
    """Play a consultation: inquiry, differential, examinations, diagnosis. Deterministic from `rng`."""
    person, physician = PassivePatient(patient, rng), ScriptedPhysician(patient, knowledge)
    questions = plan_questions(rng, patient.disease, knowledge)
    interruption = draw_interruption(rng, len(questions))
    turns, history = [person.opening()], list[Asked]()
    interrupted = False
    for index, (item, disease_id) in enumerate(questions):
        turns.append(physician.inquire(item, disease_id, history[-1] if history else None, interrupted=interrupted))
        interrupted = index == interruption.after_answer
        mode = interruption.mode if interrupted else "plain"
        turns.append(person.answer(item, disease_id, interruption.question, mode))
        present = disease_id == patient.disease.id and item.id in patient.present
        history.append(Asked(item, disease_id, present))
    last = turns[-1]
    turns[-1] = Turn(last.role, last.kind, f"{last.content} {ASK_DIFFERENTIAL}", facts=last.facts)
    turns += [
        physician.differential(history),
        Turn("user", "question", ASK_EXAMINATIONS),
        physician.examine(),
        person.results(knowledge.examinations),
        physician.diagnose(),
    ]
    return Dialogue(tuple(turns), patient.disease.id)


def _warning(disease: Disease) -> tuple[str, tuple[str, ...]]:
    text = f"Go to a hospital at once if you notice {join_words(list(disease.red_flags), 'or')}."
    return text, tuple(f"{disease.id}/red_flag/{index}" for index in range(len(disease.red_flags)))


def _symptom(disease: Disease, presentation: int) -> Dialogue:
    told = disease.presentations[presentation]
    critical = [item for item in disease.history if item.critical]
    warning, facts = _warning(disease)
    thought = (
        f"The question describes {told.clinical}, which fits {disease.name}. "
        f"It would matter to know of {join_words([item.clinical for item in critical])}."
    )
    answer = Turn(
        "assistant", "advice",
        f"Advice: this may be {disease.name} ({disease.icd10}), so please see a doctor. {warning}",
        thought,
        (f"{disease.id}/icd10", f"{disease.id}/presentation/{presentation}",
         *(f"{disease.id}/history/{item.id}" for item in critical), *facts),
    )  # fmt: skip
    question = Turn("user", "question", f"I have {told.lay}. Should I worry?")
    return Dialogue((question, answer), disease.id)


def _treatment(disease: Disease) -> Dialogue:
    warning, facts = _warning(disease)
    thought = f"The question is about the treatment of {disease.name} ({disease.icd10})."
    content = f"Advice: for {disease.name} a doctor will {'; '.join(disease.treatment)}. {warning}"
    facts = (*(f"{disease.id}/treatment/{index}" for index in range(len(disease.treatment))), *facts)
    question = Turn("user", "question", f"How is {disease.name} treated?")
    return Dialogue((question, Turn("assistant", "advice", content, thought, facts)), disease.id)


def _tests(disease: Disease, knowledge: Knowledge) -> Dialogue:
    thought = f"The question is about the examinations for {disease.name} ({disease.icd10})."
    shown = join_words([f"{knowledge.examinations[e.test]} ({e.finding})" for e in disease.examinations])
    content = f"Advice: {disease.name} is examined by {shown}."
    facts = tuple(f"{disease.id}/examination/{exam.test}" for exam in disease.examinations)
    question = Turn("user", "question", f"Which examinations show {disease.name}?")
    return Dialogue((question, Turn("assistant", "advice", content, thought, facts)), disease.id)


def advise(disease: Disease, knowledge: Knowledge, rng: random.Random) -> Dialogue:
    """A single question of health advice about `disease`, with a short reasoning part."""
    kind = rng.random()
    if kind < 0.5:
        return _symptom(disease, rng.randrange(len(disease.presentations)))
    return _treatment(disease) if kind < 0.75 else _tests(disease, knowledge)
