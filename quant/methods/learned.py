# SPDX-License-Identifier: Apache-2.0
"""What AutoRound learns of one weight, and the linear layer that learns it as the gradient passes through.

With c = q - z, G the gradient of W = s c, and [.] 1 where nothing is clamped and 0 elsewhere, straight through the
rounding of integers and scales:

    c = clamp(round(w / s + v), -z, 15 - z),   dv = s G [.],   df = s_0 sum_group G (c - [.] w / s),   s = s_0 f

Only the signs of dv and df are used. W, G and they are made some rows at a time and never kept: a backward pass updates
v and f of a row as soon as their gradients are known, when that row of W has done its part in it.

Shape suffixes: N outputs, K inputs, G groups of S inputs (K = G * S), T tokens.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from math import prod

import torch
from torch import Tensor, nn
from torch.autograd.function import FunctionCtx, once_differentiable

from aerie.quant.halves import Halves
from aerie.quant.weight import LEVELS, MIDDLE, Int4Weight, Scheme, chunk_rows

NARROWEST, WIDEST = 0.5, 1.5
"""Bounds of f."""
HALF = 2**15 - 1
"""The integer that v = 1/2 is kept as: evenly spaced, as the last steps of a float16's v would be lost."""
LEAST_ROWS = 64
"""Of a product: fewer would read the tokens from memory for too little arithmetic."""


class Workspace:
    """Memory for float32 values of some rows, shared by all weights: temporaries among what is kept leave holes."""

    def __init__(self) -> None:
        self._memory = torch.empty(0)

    def take(self, device: torch.device, *shape: int) -> tuple[Tensor, ...]:
        """Four tensors with anything in them, until the next call."""
        count = 4 * prod(shape)
        if self._memory.numel() < count or self._memory.device != device:
            self._memory = torch.empty(count, device=device)
        return self._memory[:count].view(4, *shape).unbind()

    def clear(self) -> None:
        """Let go of it until the next call."""
        self._memory = torch.empty(0)


@dataclass(frozen=True)
class _Rows:
    """Some rows of a weight on their way to integers."""

    exact_NGS: Tensor
    """w / s."""
    rounded_NGS: Tensor
    """c before it is clamped."""
    level_NGS: Tensor
    """c."""
    spare_NGS: Tensor
    scale_NG1: Tensor

    def weight(self) -> Tensor:
        """W, [N, K], in `spare_NGS`."""
        return torch.mul(self.level_NGS, self.scale_NG1, out=self.spare_NGS).flatten(1)

    def gradient(self, grad_TN: Tensor, x_TK: Tensor) -> Tensor:
        """G, in `spare_NGS`."""
        torch.mm(grad_TN.T, x_TK, out=self.spare_NGS.flatten(1))
        return self.spare_NGS


class Rounding:
    """v and f of one weight; v takes the weight's own memory until `restore`."""

    def __init__(self, weight_NK: Tensor, start: Int4Weight, scheme: Scheme, workspace: Workspace) -> None:
        # The integers of the start are those of v = 0 and f = 1: they need not be kept.
        self._scheme, self._scale_NG, self._zero_NG = scheme, start.scale_NG, start.zero_NG
        self._halves, self._workspace = Halves(weight_NK), workspace
        self.f_NG = torch.ones_like(start.scale_NG, dtype=torch.float32)
        self._middle = torch.tensor(float(MIDDLE), device=weight_NK.device)

    def offsets(self) -> Tensor:
        """v, [N, K]."""
        return self._halves.integer_NK / (2 * HALF)

    def forget(self) -> None:
        """Back to the start."""
        self._halves.integer_NK.zero_()
        self.f_NG.fill_(1)

    def restore(self) -> None:
        """Put the weight back; what was learned is lost."""
        self._halves.restore()

    def result(self) -> Int4Weight:
        """Integers and scales as they will be stored."""
        q_NK = torch.empty_like(self._halves.weight_NK, dtype=torch.uint8)
        for rows in self._chunks():
            q_NK[rows].copy_(self._rows(rows).level_NGS.add_(self._zero(rows)).flatten(1))
        return Int4Weight(q_NK, self._scale(slice(None)), self._zero_NG)

    def product(self, x_TK: Tensor) -> Tensor:
        """Tokens times W^T, [T, N]."""
        out_TN = x_TK.new_empty(len(x_TK), len(self.f_NG))
        for rows in self._chunks():
            torch.mm(x_TK, self._rows(rows).weight().T, out=out_TN[:, rows])
        return out_TN

    def update(self, x_TK: Tensor, grad_TN: Tensor, rate: float, wanted: bool) -> Tensor | None:
        """One step of signed gradient descent, given the gradient of `product`; that of x [T, K], if it is wanted."""
        back_TK = torch.zeros_like(x_TK) if wanted else None
        for rows in self._chunks():
            part_TN, made = grad_TN[:, rows], self._rows(rows)
            if back_TK is not None:
                back_TK.addmm_(part_TN, made.weight())
            self._step(rows, made, made.gradient(part_TN, x_TK), rate)
        return back_TK

    def _step(self, rows: slice, made: _Rows, grad_NGS: Tensor, rate: float) -> None:
        inside_NGS = torch.eq(made.rounded_NGS, made.level_NGS, out=made.rounded_NGS)
        slope_NGS = made.exact_NGS.mul_(inside_NGS).neg_().add_(made.level_NGS).mul_(grad_NGS)
        self.f_NG[rows].sub_(slope_NGS.sum(-1).sign_(), alpha=rate).clamp_(NARROWEST, WIDEST)
        step = max(1, round(2 * HALF * rate))
        integer_NGS = self._halves.integer_NK[rows].view_as(grad_NGS)
        moved_NGS = made.exact_NGS.copy_(integer_NGS).sub_(grad_NGS.sign_().mul_(inside_NGS), alpha=step)
        integer_NGS.copy_(moved_NGS.clamp_(-HALF, HALF))

    def _rows(self, rows: slice) -> _Rows:
        scale_NG1, zero = self._scale(rows).float()[..., None], self._zero(rows)
        weight_NK, integer_NK = self._halves.weight_NK[rows], self._halves.integer_NK[rows]
        n, groups, _ = scale_NG1.shape
        made = self._workspace.take(weight_NK.device, n, groups, weight_NK.shape[1] // groups)
        exact_NGS, rounded_NGS, level_NGS, spare_NGS = made
        exact_NGS.copy_(weight_NK.view_as(exact_NGS)).div_(scale_NG1)
        rounded_NGS.copy_(integer_NK.view_as(exact_NGS)).mul_(1 / (2 * HALF)).add_(exact_NGS).round_()
        torch.maximum(rounded_NGS, -zero, out=level_NGS)
        torch.minimum(level_NGS, LEVELS - zero, out=level_NGS)
        return _Rows(exact_NGS, rounded_NGS, level_NGS, spare_NGS, scale_NG1)

    def _scale(self, rows: slice) -> Tensor:
        return self._scheme.stored(self._scale_NG[rows].float() * self.f_NG[rows])

    def _zero(self, rows: slice) -> Tensor:
        """z, [N, G, 1] or the same for all."""
        return self._middle if self._zero_NG is None else self._zero_NG[rows].float()[..., None]

    def _chunks(self) -> Iterator[slice]:
        size = max(LEAST_ROWS, chunk_rows(self._halves.weight_NK))
        return (slice(first, first + size) for first in range(0, len(self.f_NG), size))


class LearnedLinear(nn.Module):
    """Stands in for a linear layer whose weight is being rounded; a backward pass through it is an update.

    It may run once in a forward pass that is followed by a backward pass.
    """

    def __init__(self, linear: nn.Linear, start: Int4Weight, scheme: Scheme, workspace: Workspace) -> None:
        super().__init__()
        # `data` has a version of its own: a layer's tensors are all parts of one block, and autograd, which keeps those
        # of norms for its backward pass, would take a change of the offsets for one of theirs.
        self.rounding = Rounding(linear.weight.data, start, scheme, workspace)
        self.rate = 0.0
        """Of the next update."""
        self._bias_N = linear.bias
        # The first layers read what needs no gradient, and would otherwise have no backward pass.
        self._anchor = torch.zeros((), requires_grad=True)

    def forward(self, x: Tensor) -> Tensor:
        """[..., K] to [..., N]."""
        x_TK = x.reshape(-1, x.shape[-1])
        made = _Product.apply(x_TK, self._anchor, self.rounding, self.rate)  # type: ignore[no-untyped-call]  # torch's stub
        out: Tensor = made.view(*x.shape[:-1], -1)
        return out if self._bias_N is None else out + self._bias_N


class _Context(FunctionCtx):
    """What torch sets but its stub leaves out, and what is passed from forward to backward."""

    saved_tensors: tuple[Tensor, ...]
    needs_input_grad: tuple[bool, ...]
    rounding: Rounding
    rate: float


class _Product(torch.autograd.Function):
    @staticmethod
    def forward(ctx: _Context, x_TK: Tensor, anchor: Tensor, rounding: Rounding, rate: float) -> Tensor:
        ctx.save_for_backward(x_TK)
        ctx.rounding, ctx.rate = rounding, rate
        return rounding.product(x_TK)

    @staticmethod
    @once_differentiable
    def backward(ctx: _Context, *grads: Tensor) -> tuple[Tensor | None, ...]:
        (x_TK,) = ctx.saved_tensors
        return ctx.rounding.update(x_TK, grads[0], ctx.rate, ctx.needs_input_grad[0]), None, None, None
