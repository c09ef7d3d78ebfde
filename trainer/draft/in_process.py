# SPDX-License-Identifier: Apache-2.0
"""Hidden states from transformers in this process, for targets that fit into its memory in float32.

Shapes: B documents, L tokens, A aux layers, H hidden size.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from aerie.trainer.draft.regenerate import Answered
from aerie.trainer.draft.target import load_target

if TYPE_CHECKING:
    from transformers import PreTrainedModel


@contextmanager
def states_in_process(
    target: Path, ids: tuple[int, ...], batch_tokens: int
) -> Iterator[Callable[[list[Answered]], list[Tensor]]]:
    """Yield what computes float32 [L, A + 1, H] of every document: aux layers, then the stream before the last norm."""
    model = load_target(target)

    def states(documents: list[Answered]) -> list[Tensor]:
        return [one for batch in _batches(documents, batch_tokens) for one in _run(model, batch, ids)]

    yield states


def _batches(documents: list[Answered], budget: int) -> Iterator[list[Answered]]:
    batch: list[Answered] = []
    for one in documents:
        longest = max(map(len, [*batch, one]))
        if batch and longest * (len(batch) + 1) > budget:
            yield batch
            batch = []
        batch.append(one)
    if batch:
        yield batch


@torch.inference_mode()
def _run(model: "PreTrainedModel", batch: list[Answered], ids: tuple[int, ...]) -> Iterator[Tensor]:
    tokens_BL = pad_sequence([torch.tensor(one.token_ids) for one in batch], batch_first=True)
    lengths_B1 = torch.tensor([len(one) for one in batch])[:, None]
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
        yield stacked_BLAH[index, : len(one)]
