# SPDX-License-Identifier: Apache-2.0
"""token[t] = v + d2t[v] with v = argmax over the draft vocabulary of hidden[t] W^T: a draft step's greedy choice.

hidden [T, H], W [V, H], one float dtype; d2t [V] int64 offsets from draft to target ids, or None where they are the
same; tokens [T] int64. Of equal logits the lowest draft id's wins. The kernel compares logits in float32, as summed;
torch's operators round them to the dtype first, in which more of them are equal. The kernel never chooses a NaN: where
all logits are NaN it is draft id 0.

In 2-byte types: reads 2 V H + 2 T H bytes, writes and reads 8 T V / 128 of tiles' best; 2 T V H FLOPs. Floor at
V = 32000, H = 4096, T = 16 and 4.3 TB/s: 262 MB, 61 us. Saved is what follows the product: vLLM's own fills
[T, target vocabulary] with -inf, scatters the logits into it and searches it, about five launches. Above `MOST_TOKENS`,
and in float32, the product is bound by arithmetic: torch computes it.
"""

from typing import Final

import torch

from aerie.kernels.route import interpreted, route

MOST_TOKENS: Final = 64
"""Tokens up to which the weight is read once by the kernel."""


def _with_torch(hidden_TH: torch.Tensor, weight_VH: torch.Tensor, d2t_V: torch.Tensor | None) -> torch.Tensor:
    top_T = torch.nn.functional.linear(hidden_TH, weight_VH).argmax(dim=-1)
    return top_T if d2t_V is None else top_T + d2t_V[top_T]


def _head(
    hidden_TH: torch.Tensor, weight_VH: torch.Tensor, d2t_V: torch.Tensor | None, next_ids_T: torch.Tensor | None
) -> torch.Tensor:
    tokens = hidden_TH.shape[0]
    streams = tokens <= MOST_TOKENS and hidden_TH.dtype != torch.float32
    given = [one for one in (d2t_V, next_ids_T) if one is not None]
    if route(hidden_TH, weight_VH, *given) == "torch" or not (streams or interpreted()):
        tokens_T = _with_torch(hidden_TH, weight_VH, d2t_V)
        if next_ids_T is not None:
            next_ids_T.copy_(tokens_T)
        return tokens_T
    from aerie.kernels.draft_head.kernel import launch

    tokens_T = hidden_TH.new_empty(tokens, dtype=torch.int64)
    if tokens:
        launch(hidden_TH, weight_VH, d2t_V, tokens_T, next_ids_T)
    return tokens_T


_opaque_head = torch.library.custom_op("aerie::draft_head", _head, mutates_args=("next_ids_T",))


@_opaque_head.register_fake
def _(
    hidden_TH: torch.Tensor, weight_VH: torch.Tensor, d2t_V: torch.Tensor | None, next_ids_T: torch.Tensor | None
) -> torch.Tensor:
    return hidden_TH.new_empty(hidden_TH.shape[0], dtype=torch.int64)


def draft_tokens(
    hidden_TH: torch.Tensor,
    weight_VH: torch.Tensor,
    d2t_V: torch.Tensor | None = None,
    next_ids_T: torch.Tensor | None = None,
) -> torch.Tensor:
    """The operator of this file's docstring; returns the target's ids, int64 [T].

    Args:
        hidden_TH: what lm_head reads: the normed output of the draft's layer.
        weight_VH: lm_head of the draft, contiguous, without rows of padding.
        d2t_V: target id minus draft id, for each draft id.
        next_ids_T: where the next draft step reads its input ids, int32 or int64; written too.

    Raises:
        ImportError: Triton is needed and not installed.
        TypeError: dtypes differ, or bfloat16 is bound for Triton's interpreter.
        ValueError: shapes, strides or devices do not fit.
    """
    (tokens, hidden), vocabulary = hidden_TH.shape, weight_VH.shape[0]
    if weight_VH.shape[1] != hidden or (d2t_V is not None and d2t_V.shape != (vocabulary,)):
        raise ValueError(f"lm_head must have {hidden} columns, and d2t an offset for each of its {vocabulary} rows")
    if next_ids_T is not None and next_ids_T.shape != (tokens,):
        raise ValueError(f"there must be room for {tokens} next ids, not {list(next_ids_T.shape)}")
    if hidden_TH.dtype != weight_VH.dtype:
        raise TypeError(f"hidden states are {hidden_TH.dtype}, lm_head {weight_VH.dtype}: give one dtype")
    dense = (weight_VH, *(one for one in (d2t_V, next_ids_T) if one is not None))
    if hidden_TH.stride(-1) != 1 or not all(one.is_contiguous() for one in dense):
        raise ValueError("lm_head, d2t and next ids must be contiguous, and rows of hidden states without gaps")
    # A custom operator costs 10 us a call in Python: eager code goes straight in.
    head = _opaque_head if torch.compiler.is_compiling() else _head
    tokens_T: torch.Tensor = head(hidden_TH, weight_VH, d2t_V, next_ids_T)
    return tokens_T
