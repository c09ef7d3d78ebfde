# SPDX-License-Identifier: Apache-2.0
"""Runs the target over prompts and answers and stores what the head learns from, once, for any number of trainings.

A shard `hs_NNNNN.safetensors` holds whole documents one after another:
`hidden_states` bf16 [T, A + 1, H], the aux layers and then the residual stream before the last norm;
`token_ids` int32 [T]; `supervised` bool [T], true for the answer's tokens; `choices` int32 [T], the target's most
likely next token, taken in float32; `lengths` int32 [documents].
Beside them `teacher.safetensors` (see target.py) and `capture.json`.

Shapes: B documents, L tokens, T tokens of a shard, A aux layers, H hidden size.
"""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from aerie.artefacts import write_json
from aerie.trainer.draft.recipe import Capture
from aerie.trainer.draft.regenerate import Answered
from aerie.trainer.draft.target import Teacher, load_target
from aerie.trainer.recipe import RecipeError

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedModel


@dataclass(frozen=True)
class Document:
    """One captured document, float data as stored (bf16)."""

    hidden_states: Tensor
    token_ids: Tensor
    supervised: Tensor
    choices: Tensor


def layer_ids(requested: tuple[int, ...] | None, layers: int) -> tuple[int, ...]:
    """The aux layers, ascending; Eagle-3's choice when none are requested. Raises RecipeError."""
    ids = requested if requested is not None else (2, layers // 2, layers - 3)
    if list(ids) != sorted(set(ids)) or ids[0] < 0 or ids[-1] >= layers:
        raise RecipeError(
            f"capture.aux_hidden_state_layer_ids: {list(ids)} must be distinct, ascending and within 0..{layers - 1}; "
            f"the engine sorts and merges them, and the head would lose inputs"
        )
    return ids


def capture(target: Path, answered: list[Answered], settings: Capture, folder: Path) -> None:
    """Write the shards of all documents to `folder`."""
    model = load_target(target)
    ids = layer_ids(settings.aux_hidden_state_layer_ids, model.config.num_hidden_layers)
    teacher = Teacher.of(model)
    teacher.save(folder / "teacher.safetensors")
    # Batches are made of documents of like length; the shards keep that order.
    ordered = sorted((one for one in answered if one.answer_ids), key=lambda one: len(one.prompt_ids + one.answer_ids))
    pending, tokens, shards = list[Document](), 0, 0
    for batch in _batches(ordered, settings.batch_tokens):
        for document in _run(model, teacher, batch, ids):
            pending.append(document)
            tokens += len(document.token_ids)
        if tokens >= settings.shard_tokens:
            _write_shard(folder / f"hs_{shards:05}.safetensors", pending)
            pending, tokens, shards = [], 0, shards + 1
    if pending:
        _write_shard(folder / f"hs_{shards:05}.safetensors", pending)
    write_json(folder / "capture.json", _description(model.config, ids, ordered))


def _description(config: "PretrainedConfig", ids: tuple[int, ...], documents: list[Answered]) -> dict[str, object]:
    heads = config.num_attention_heads
    rope = getattr(config, "rope_parameters", None) or {}
    return {
        "aux_hidden_state_layer_ids": list(ids),
        "documents": len(documents),
        "tokens": sum(len(one.prompt_ids) + len(one.answer_ids) for one in documents),
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


def read_description(folder: Path) -> dict[str, Any]:
    """What `capture.json` says of the data and of the target's shape."""
    description: dict[str, Any] = json.loads((folder / "capture.json").read_text())
    return description


def _batches(ordered: list[Answered], budget: int) -> Iterator[list[Answered]]:
    batch: list[Answered] = []
    for one in ordered:
        longest = len(one.prompt_ids) + len(one.answer_ids)
        if batch and longest * (len(batch) + 1) > budget:
            yield batch
            batch = []
        batch.append(one)
    if batch:
        yield batch


@torch.inference_mode()
def _run(model: "PreTrainedModel", teacher: Teacher, batch: list[Answered], ids: tuple[int, ...]) -> Iterator[Document]:
    sequences = [torch.tensor(one.prompt_ids + one.answer_ids) for one in batch]
    tokens_BL = torch.nn.utils.rnn.pad_sequence(sequences, batch_first=True)
    lengths_B1 = torch.tensor([len(one) for one in sequences])[:, None]
    mask_BL = (torch.arange(tokens_BL.shape[1]) < lengths_B1).long()
    final: list[Tensor] = []
    # transformers' hidden_states[-1] is after the last norm; the head's teacher needs what goes into it.
    handle = model.model.norm.register_forward_pre_hook(lambda _, arguments: final.append(arguments[0]))
    try:
        states = model.model(tokens_BL, attention_mask=mask_BL, output_hidden_states=True).hidden_states
    finally:
        handle.remove()
    stacked_BLAH = torch.stack([*(states[layer] for layer in ids), final[0]], dim=2)
    for index, one in enumerate(batch):
        length = len(one.prompt_ids) + len(one.answer_ids)
        supervised = torch.arange(length) >= len(one.prompt_ids)
        choices = teacher.logits(final[0][index, :length]).argmax(-1).to(torch.int32)
        hidden = stacked_BLAH[index, :length].to(torch.bfloat16)
        yield Document(hidden, tokens_BL[index, :length].to(torch.int32), supervised, choices)


def _write_shard(path: Path, documents: list[Document]) -> None:
    names = ("hidden_states", "token_ids", "supervised", "choices")
    tensors = {name: torch.cat([getattr(one, name) for one in documents]).contiguous() for name in names}
    tensors["lengths"] = torch.tensor([len(one.token_ids) for one in documents], dtype=torch.int32)
    save_file(tensors, path)
