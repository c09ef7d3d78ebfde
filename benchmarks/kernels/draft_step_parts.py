# SPDX-License-Identifier: Apache-2.0
"""The parts of a draft step on random data, each as our operator and as what it replaces. Called by draft_step.py.

Shape suffixes: T tokens, H hidden size, D query heads x head size, W target vocabulary, V draft vocabulary.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor
from torch.nn import functional

from aerie.kernels.attention_gate import api as gate
from aerie.kernels.attention_gate import reference as gate_reference
from aerie.kernels.draft_head import api as head
from aerie.kernels.draft_head import reference as head_reference
from aerie.kernels.draft_prologue import api as prologue
from aerie.kernels.draft_prologue import reference as prologue_reference

EPS = 1e-6
Call = Callable[[], Tensor]


@dataclass(frozen=True)
class Sizes:
    """Of the head and its vocabularies; by default an 8B target's."""

    hidden: int = 4096
    heads: int = 32
    head_dim: int = 128
    vocabulary: int = 151936
    draft_vocabulary: int = 32000


@dataclass(frozen=True)
class Part:
    """One part on one set of tensors: ways to compute it by name, bytes it must move, our relative error."""

    ways: dict[str, Call]
    bytes: int
    error: Callable[[], float]


def norm(x_TH: Tensor, weight_H: Tensor) -> Tensor:
    """RMSNorm by vLLM's kernel where it is loaded, else by torch."""
    if x_TH.is_cuda and hasattr(torch.ops._C, "rms_norm"):
        y_TH = torch.empty_like(x_TH)
        torch.ops._C.rms_norm(y_TH, x_TH, weight_H, EPS)
        return y_TH
    return functional.rms_norm(x_TH, weight_H.shape, weight_H, EPS)


def relative_error(found: Tensor, expected: Tensor) -> float:
    """||found - expected|| / ||expected||."""
    return float((found.double() - expected).norm() / expected.norm())


class Step:
    """Random tensors of one dtype on one device; the embedding table is shared by all copies of a part."""

    def __init__(self, sizes: Sizes, tokens: int, dtype: torch.dtype, device: str) -> None:
        self.sizes, self.tokens = sizes, tokens
        self.new = partial(torch.randn, dtype=dtype, device=device)
        self.device = device
        self.table_WH = self.new(sizes.vocabulary, sizes.hidden)
        targets = torch.randperm(sizes.vocabulary, device=device)[: sizes.draft_vocabulary].sort().values
        self.d2t_V = targets - torch.arange(sizes.draft_vocabulary, device=device)

    def prologue(self) -> Part:
        """Gather, two norms, concatenation."""
        hidden, tokens = self.sizes.hidden, self.tokens
        ids_T = torch.randint(self.sizes.vocabulary, (tokens,), device=self.device, dtype=torch.int32)
        hidden_TH, weights = self.new(tokens, hidden), (self.new(hidden), self.new(hidden))
        arguments = (ids_T, self.table_WH, hidden_TH, *weights)

        def replaced() -> Tensor:
            embed_TH = functional.embedding(ids_T.long(), self.table_WH)
            return torch.cat([norm(embed_TH, weights[0]), norm(hidden_TH, weights[1])], dim=-1)

        ours = partial(prologue.draft_prologue, *arguments, eps=EPS)
        expected = partial(prologue_reference.draft_prologue, *arguments, eps=EPS)
        moved = hidden_TH.element_size() * (4 * tokens * hidden + 2 * hidden)
        return Part(
            {"ours": lambda: ours()[0], "replaced": replaced}, moved, lambda: relative_error(ours()[0], expected())
        )

    def gate(self, elementwise: bool) -> Part:
        """Projection, sigmoid, product with the attention's output."""
        sizes, inputs = self.sizes, 2 * self.sizes.hidden
        channels = sizes.heads * sizes.head_dim
        gates = channels if elementwise else sizes.heads
        x_TK, attended_TD = self.new(self.tokens, inputs), self.new(self.tokens, channels)
        weight_GK = self.new(gates, inputs) / inputs**0.5

        def replaced() -> Tensor:
            gate_TG = torch.sigmoid(functional.linear(x_TK, weight_GK))
            return (attended_TD.view(self.tokens, gates, -1) * gate_TG.unsqueeze(-1)).flatten(1)

        ours = partial(gate.gate_attention, x_TK, weight_GK, attended_TD)
        expected = partial(gate_reference.gate_attention, x_TK, weight_GK, attended_TD)
        moved = x_TK.element_size() * (weight_GK.numel() + x_TK.numel() + 2 * attended_TD.numel())
        return Part({"ours": ours, "replaced": replaced}, moved, lambda: relative_error(ours(), expected()))

    def head(self) -> Part:
        """lm_head and the greedy choice: `replaced` is what vLLM does unasked, `local` under local argmax reduction."""
        sizes = self.sizes
        hidden_TH = self.new(self.tokens, sizes.hidden)
        weight_VH = self.new(sizes.draft_vocabulary, sizes.hidden) / sizes.hidden**0.5

        def replaced() -> Tensor:
            logits_TV = functional.linear(hidden_TH, weight_VH)
            targets_V = torch.arange(len(self.d2t_V), device=self.device) + self.d2t_V
            logits_TW = logits_TV.new_full((self.tokens, sizes.vocabulary), float("-inf"))
            logits_TW[:, targets_V] = logits_TV
            return logits_TW.argmax(-1)

        def local() -> Tensor:
            top_T = functional.linear(hidden_TH, weight_VH).max(-1).indices
            return top_T + self.d2t_V[top_T]

        def error() -> float:
            """How far the chosen logit is below the largest, as a share of the largest |logit|."""
            logits_TV = head_reference.logits(hidden_TH, weight_VH)
            chosen_T1 = head.draft_tokens(hidden_TH, weight_VH)[:, None]
            short_T = logits_TV.amax(1) - logits_TV.gather(1, chosen_T1)[:, 0]
            return float((short_T / logits_TV.abs().amax(1)).max())

        ours = partial(head.draft_tokens, hidden_TH, weight_VH, self.d2t_V)
        moved = weight_VH.element_size() * (weight_VH.numel() + hidden_TH.numel())
        return Part({"ours": ours, "replaced": replaced, "local": local}, moved, error)

    def parts(self) -> Iterator[tuple[str, Callable[[], Part]]]:
        """Every part by name; each call makes tensors anew."""
        yield "prologue", self.prologue
        yield "gate_elementwise", partial(self.gate, elementwise=True)
        yield "gate_headwise", partial(self.gate, elementwise=False)
        yield "head", self.head
