# SPDX-License-Identifier: Apache-2.0
"""Real consultations, answered and captured once, and a plain head to train on them."""

from dataclasses import dataclass, replace
from pathlib import Path

import torch

from aerie.benchmarks.errors import BenchmarkError
from aerie.draft_models.modeling import Eagle3Head
from aerie.trainer.draft import vocab
from aerie.trainer.draft.capture import read_description
from aerie.trainer.draft.data import rows_of
from aerie.trainer.draft.initial import initial_head
from aerie.trainer.draft.prepared import head_config, prepare
from aerie.trainer.draft.prompts import load_prompts
from aerie.trainer.draft.recipe import ClinicPrompts, DraftRecipe, Head
from aerie.trainer.draft.shards import PATTERN, Document, read_shard
from aerie.trainer.draft.stages import target_hashes
from aerie.trainer.draft.target import Teacher


@dataclass(frozen=True)
class Corpus:
    """What both trainers get."""

    documents: list[Document]
    teacher: Teacher
    folder: Path

    def head(self, draft_vocab_size: int, seed: int) -> Eagle3Head:
        """A new plain head over the most frequent tokens."""
        config = head_config(Head(gate="none", draft_vocab_size=draft_vocab_size), read_description(self.folder), None)
        ids = torch.cat([one.token_ids for one in self.documents]).long()
        counts_W = torch.bincount(ids, minlength=config.vocab_size)
        return initial_head(config, self.teacher, vocab.choose(counts_W, counts_W, config.draft_vocab_size), seed)


def captured(model: Path, work: Path, count: int, seed: int) -> Corpus:
    """Documents of `count` training prompts, in a shuffled order; answered and captured unless `work` has them."""
    prompts = ClinicPrompts(split="train", count=count, seed=seed)
    recipe = DraftRecipe(target=model, output=work / "unused", work=work, prompts=prompts)
    folder = prepare(recipe, load_prompts(prompts), 0.0, target_hashes(model))
    documents = [one for path in sorted(folder.glob(PATTERN)) for one in read_shard(path) if len(rows_of(one))]
    if len(documents) < count:
        raise BenchmarkError(f"only {len(documents)} of {count} prompts have an answer to train on")
    # Shards are in order of length.
    draw = torch.Generator().manual_seed(seed)
    shuffled = [documents[int(index)] for index in torch.randperm(len(documents), generator=draw)]
    return Corpus(shuffled, Teacher.load(folder / "teacher.safetensors"), folder)


def wholly_supervised(document: Document) -> Document:
    """The same document with every token supervised: then both trainers draft from the same positions."""
    return replace(document, supervised=torch.ones_like(document.supervised))
