# SPDX-License-Identifier: Apache-2.0
"""Runs the target over prompts and answers and stores what the head learns from, once, for any number of trainings.

A folder of shards (shards.py has their format, which reads as speculators' `hs_*.safetensors`: the aux layers, then
the final hidden state before the last norm), `teacher.safetensors` (target.py) and `capture.json`. When the states
would not fit into `capture.disk_budget_gib` there are no shards but `documents.jsonl`, and stream.py captures them in
chunks while they are trained on.
"""

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from aerie.artefacts import write_json
from aerie.progress import Bar
from aerie.trainer.draft.child import Child
from aerie.trainer.draft.in_process import states_in_process
from aerie.trainer.draft.recipe import Capture
from aerie.trainer.draft.regenerate import Answered, write_answers
from aerie.trainer.draft.shards import Document as Document
from aerie.trainer.draft.shards import shard_path, write_shard
from aerie.trainer.draft.support import check_basis
from aerie.trainer.draft.target import Teacher
from aerie.trainer.draft.vllm_capture import states_from_vllm
from aerie.trainer.recipe import RecipeError

if TYPE_CHECKING:
    from transformers import PretrainedConfig

Job = tuple[list[Answered], Path]
"""Documents and the shard that is to hold them."""
DOCUMENTS = "documents.jsonl"
DESCRIPTION = "capture.json"
TEACHER = "teacher.safetensors"


def layer_ids(requested: tuple[int, ...] | None, layers: int) -> tuple[int, ...]:
    """The aux layers, ascending; Eagle-3's choice when none are requested. Raises RecipeError.

    Eagle-3's (2, n / 2, n - 3) collapses on six layers or fewer; those get an early, a middle and their last but one.
    """
    spread = (2, layers // 2, layers - 3) if layers > 6 else (min(1, layers - 3), layers // 2, layers - 1)
    ids = requested if requested is not None else spread
    if not ids or list(ids) != sorted(set(ids)) or ids[0] < 0 or ids[-1] >= layers:
        raise RecipeError(
            f"capture.aux_hidden_state_layer_ids: {list(ids)} must be distinct, ascending and within 0..{layers - 1}; "
            f"the engine sorts and merges them, and the head would lose inputs"
        )
    return ids


def capture(target: Path, answered: list[Answered], settings: Capture, folder: Path) -> None:
    """Write `folder`; shards that an earlier call left there are kept. Raises RecipeError, DataError."""
    from transformers import AutoConfig

    check_basis(target)
    config = AutoConfig.from_pretrained(target).get_text_config()
    ids = layer_ids(settings.aux_hidden_state_layer_ids, config.num_hidden_layers)
    documents = [one for one in answered if one.answer_ids]
    _check_ids(documents, config.vocab_size)
    Teacher.read(target).save(folder / TEACHER)
    if _fits(documents, len(ids), config.hidden_size, settings):
        store(target, documents, ids, settings, folder)
    else:
        write_answers(folder / DOCUMENTS, documents)
    write_json(folder / DESCRIPTION, _description(config, ids, documents))


def store(target: Path, documents: list[Answered], ids: tuple[int, ...], settings: Capture, folder: Path) -> None:
    """Write the shards that are missing in a folder that holds the teacher."""
    jobs = [(part, shard_path(folder, number)) for number, part in enumerate(parts(documents, settings.shard_tokens))]
    missing = [job for job in jobs if not job[1].exists()]
    if missing:
        opening = Opening(target, ids, settings, max(map(len, documents)), folder / TEACHER, folder / ".states")
        total, left = (sum(len(one) for part, _ in some for one in part) for some in (jobs, missing))
        with Bar("capture", total, "tokens", done=total - left) as bar, _writer(opening) as write:
            for job in missing:
                write(job)
                bar.advance(sum(map(len, job[0])))


def parts(documents: list[Answered], shard_tokens: int) -> Iterator[list[Answered]]:
    """The documents of each shard: of like length, so that batches of them pad little."""
    part, tokens = list[Answered](), 0
    for one in sorted(documents, key=len):
        part.append(one)
        tokens += len(one)
        if tokens >= shard_tokens:
            yield part
            part, tokens = [], 0
    if part:
        yield part


def state_bytes(tokens: int, aux_layers: int, hidden_size: int) -> int:
    """What bf16 states of so many tokens take on disk."""
    return tokens * (aux_layers + 1) * hidden_size * 2


@dataclass(frozen=True)
class Opening:
    """What it takes to open an engine that writes shards, in this process or another."""

    target: Path
    ids: tuple[int, ...]
    settings: Capture
    longest: int
    teacher: Path
    scratch: Path


@contextmanager
def shard_writer(opening: Opening) -> Iterator[Callable[[Job], None]]:
    """Yield what captures the documents of a job and writes their shard."""
    teacher = Teacher.load(opening.teacher)
    settings = opening.settings
    engine = (
        states_from_vllm(opening.target, opening.ids, settings, opening.longest, opening.scratch)
        if settings.engine == "vllm"
        else states_in_process(opening.target, opening.ids, settings.batch_tokens)
    )
    with engine as states:

        def write(job: Job) -> None:
            documents, path = job
            captured = zip(documents, states(documents), strict=True)
            write_shard(path, [_document(one, teacher, states_LAH) for one, states_LAH in captured])

        yield write


def read_description(folder: Path) -> dict[str, Any]:
    """What `capture.json` says of the data and of the target's shape."""
    description: dict[str, Any] = json.loads((folder / DESCRIPTION).read_text())
    return description


@contextmanager
def _writer(opening: Opening) -> Iterator[Callable[[Job], None]]:
    if opening.settings.engine == "transformers":
        with shard_writer(opening) as write:
            yield write
    else:
        with Child(shard_writer, opening) as child:
            yield child.ask


def _document(one: Answered, teacher: Teacher, states_LAH: torch.Tensor) -> Document:
    token_ids = torch.tensor(one.token_ids, dtype=torch.int32)
    supervised = torch.arange(len(one)) >= len(one.prompt_ids)
    return Document(states_LAH.to(torch.bfloat16), token_ids, supervised, teacher.choices(states_LAH[:, -1]))


def _check_ids(documents: list[Answered], vocab_size: int) -> None:
    highest = max((max(one.token_ids) for one in documents), default=0)
    if highest >= vocab_size:
        raise RecipeError(
            f"answers: token {highest} is beyond the target's vocabulary of {vocab_size}: they were made by another "
            f"tokenizer; remove their folder to answer again"
        )


def _fits(documents: list[Answered], aux_layers: int, hidden_size: int, settings: Capture) -> bool:
    if settings.disk_budget_gib is None:
        return True
    budget = settings.disk_budget_gib * 2**30
    total, longest = (
        state_bytes(tokens, aux_layers, hidden_size) for tokens in (sum(map(len, documents)), max(map(len, documents)))
    )
    if 2 * longest > budget:
        raise RecipeError(
            f"capture.disk_budget_gib: {settings.disk_budget_gib} GiB do not hold two of the longest document, "
            f"{2 * longest / 2**30:.4f} GiB; all of them take {total / 2**30:.4f} GiB"
        )
    return total <= budget


def _description(config: "PretrainedConfig", ids: tuple[int, ...], documents: list[Answered]) -> dict[str, object]:
    heads = config.num_attention_heads
    rope = getattr(config, "rope_parameters", None) or {}
    return {
        "aux_hidden_state_layer_ids": list(ids),
        "documents": len(documents),
        "tokens": sum(map(len, documents)),
        "supervised_tokens": sum(len(one.answer_ids) for one in documents),
        "target": {
            "hidden_size": config.hidden_size,
            "intermediate_size": config.intermediate_size,
            "num_attention_heads": heads,
            "num_key_value_heads": getattr(config, "num_key_value_heads", heads),
            "head_dim": getattr(config, "head_dim", None) or config.hidden_size // heads,
            "vocab_size": config.vocab_size,
            "rms_norm_eps": config.rms_norm_eps,
            "rope_theta": rope.get("rope_theta") or getattr(config, "rope_theta", 10000.0),
            "max_position_embeddings": config.max_position_embeddings,
        },
    }
