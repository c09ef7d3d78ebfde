# SPDX-License-Identifier: Apache-2.0
"""The clinic's documents, from a seed: training dialogues and evaluation prompts, split by patient and by disease."""

import random
from collections.abc import Iterator
from dataclasses import dataclass

from aerie.trainer.clinic.consultation import advise, consult
from aerie.trainer.clinic.dialogue import Dialogue, TurnKind
from aerie.trainer.clinic.knowledge import load_knowledge
from aerie.trainer.clinic.patients import Split, diseases_of, sample_patient

ADVICE_SHARE = 0.25


def _source(split: Split, seed: int, index: int, *, unseen: bool) -> random.Random:
    # Seeding from a string hashes it with SHA-512: independent streams, equal on every machine.
    return random.Random(f"aerie-clinic/{split}/{seed}/{index}/{unseen}")


def dialogue(split: Split, seed: int, index: int, *, unseen_diseases: bool = False) -> Dialogue:
    """The dialogue of that index: a consultation, or for one in four a single question of health advice.

    Advice names no patient, so only its disease can be held out: outside training, advice is always about a disease of
    that split, and with `unseen_diseases` false every dialogue is a consultation.
    """
    rng = _source(split, seed, index, unseen=unseen_diseases)
    knowledge = load_knowledge()
    if rng.random() < ADVICE_SHARE and (unseen_diseases or split == "train"):
        return advise(rng.choice(diseases_of(split)), knowledge, rng)
    return consult(sample_patient(rng, split, unseen_disease=unseen_diseases), knowledge, rng)


def dialogues(split: Split, count: int, seed: int, *, unseen_diseases: bool = False) -> Iterator[Dialogue]:
    """The first `count` dialogues of a split."""
    for index in range(count):
        yield dialogue(split, seed, index, unseen_diseases=unseen_diseases)


@dataclass(frozen=True)
class Prompt:
    """Messages that end in a user's turn, the kind of answer that is due, and the scripted physician's own answer."""

    messages: list[dict[str, str]]
    expected: TurnKind
    reference: str
    disease: str

    @property
    def department(self) -> str:
        """Who treats the patient's disease."""
        return load_knowledge().department_of(self.disease)


def prompts(split: Split, count: int, seed: int, *, unseen_diseases: bool = False) -> list[Prompt]:
    """`count` evaluation prompts, each from a consultation or question of its own, cut before a random answer."""
    chosen = []
    for index, one in enumerate(dialogues(split, count, seed, unseen_diseases=unseen_diseases)):
        rng = random.Random(f"aerie-clinic-prompt/{split}/{seed}/{index}")
        answers = [place for place, turn in enumerate(one.turns) if turn.role == "assistant"]
        place = rng.choice(answers)
        turn = one.turns[place]
        chosen.append(Prompt(one.messages(place), turn.kind, turn.content, one.disease))
    return chosen


def consultation_prompts(split: Split, count: int, seed: int) -> list[list[dict[str, str]]]:
    """The messages of `prompts` alone."""
    return [prompt.messages for prompt in prompts(split, count, seed)]
