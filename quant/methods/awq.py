# SPDX-License-Identifier: Apache-2.0
"""Activation-aware weight quantisation (AWQ, arXiv 2306.00978): scale up the inputs that matter, then round.

Inputs of a linear layer are divided by s and its columns multiplied by s, which changes nothing before rounding; the
division is folded into what makes the inputs: a norm, or the rows of another linear layer. s = a^alpha (Eq. 4), a the
mean magnitude of the inputs over calibration tokens; alpha is searched for the least squared error of the outputs

    sum_t w_t |(W' - W) x_t|^2 = tr((W' - W) H (W' - W)^T),  H = sum_t w_t x_t x_t^T

so that a search costs matrix products over H and reads the tokens once. w_t is 1, or the router's probability of the
expert that the layer belongs to: every expert sees all tokens, as far as they could have been its own.

Shape suffixes: N outputs, K inputs, T tokens, A values of alpha.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from itertools import product

import torch
from torch import Tensor, nn

from aerie.quant.methods.rtn import Clip, round_to_nearest
from aerie.quant.weight import Scheme, chunk_rows

GRID = 20
"""Values of alpha: 0, 1/20, ... 19/20; 0 is rounding without scales."""
CHUNK_TOKENS = 4096


@dataclass(frozen=True)
class Inputs:
    """Tokens that a linear layer reads, [T, K], and what each counts, [T]; None for one each."""

    x_TK: Tensor
    weight_T: Tensor | None = None

    def _parts(self) -> Iterable[tuple[Tensor, Tensor]]:
        total = float(len(self.x_TK) if self.weight_T is None else self.weight_T.sum().clamp(min=1e-12))
        for first in range(0, len(self.x_TK), CHUNK_TOKENS):
            part = self.x_TK[first : first + CHUNK_TOKENS]
            share = 1 if self.weight_T is None else self.weight_T[first : first + CHUNK_TOKENS, None]
            yield part, part * share / total

    def gram(self) -> Tensor:
        """H [K, K] over the sum of the weights."""
        inputs = self.x_TK.shape[1]
        gram_KK = torch.zeros(inputs, inputs, device=self.x_TK.device)
        for part, shared in self._parts():
            gram_KK.addmm_(shared.T, part)
        return gram_KK

    def mean_square(self) -> Tensor:
        """The diagonal of `gram`, [K], without making it."""
        square_K = torch.zeros(self.x_TK.shape[1], device=self.x_TK.device)
        for part, shared in self._parts():
            square_K += (shared * part).sum(0)
        return square_K

    def magnitude(self) -> Tensor:
        """Mean magnitude of each input, [K]."""
        return sum((shared.abs().sum(0) for _, shared in self._parts()), torch.zeros(1, device=self.x_TK.device))


@dataclass(frozen=True)
class Group:
    """Linear layers that read the same values, and how those can be divided where they are made."""

    linears: list[list[nn.Linear]]
    """Those of one entry read the same inputs with the same weights: q, k, v; or gate and up of one expert."""
    inputs: Callable[[int], Inputs]
    """Of an entry."""
    magnitude_K: Tensor
    """a."""
    fold: Callable[[Tensor], None]
    """Divides the values by s [K] where they are made."""
    shared: tuple[int, int] = (1, 1)
    """Grouped-query attention: so many consecutive heads, of such a size, have one producer and so one s."""


def scale(group: Group, scheme: Scheme, clip: Clip) -> Tensor:
    """Search a group's s, fold it, and scale the columns of its linear layers. Returns s [K]; 1 where none helps."""
    candidates = [_candidate(group, step / GRID) for step in range(GRID)]
    errors_A = torch.zeros(GRID, dtype=torch.float64)
    for index, linears in enumerate(group.linears):
        gram_KK = group.inputs(index).gram()
        chunks = (chunk for linear in linears for chunk in linear.weight.split(chunk_rows(linear.weight)))
        for weight_NK, (step, s_K) in product(chunks, enumerate(candidates)):
            rounded = round_to_nearest(weight_NK * s_K, scheme, clip, gram_KK.diagonal() / s_K.square())
            errors_A[step] += output_error(weight_NK, rounded.dequantise() / s_K, gram_KK)
    s_K = candidates[int(errors_A.argmin())]
    with torch.no_grad():
        group.fold(s_K)
        for linears in group.linears:
            for linear in linears:
                linear.weight.mul_(s_K)
    return s_K


def output_error(weight_NK: Tensor, restored_NK: Tensor, gram_KK: Tensor) -> float:
    """tr((W' - W) H (W' - W)^T): the outputs' squared error."""
    difference_NK = restored_NK - weight_NK
    return float((difference_NK @ gram_KK * difference_NK).sum(dtype=torch.float64))


def _candidate(group: Group, alpha: float) -> Tensor:
    """a^alpha, its extremes around 1; one value for inputs that share a producer."""
    magnitude_K = group.magnitude_K
    heads, size = group.shared
    if heads > 1:
        tied = magnitude_K.view(-1, heads, size).mean(1, keepdim=True)
        magnitude_K = tied.expand(-1, heads, -1).reshape(-1)
    s_K = magnitude_K.clamp(min=1e-4).pow(alpha)
    return s_K / (s_K.max() * s_K.min()).sqrt()
