# SPDX-License-Identifier: Apache-2.0
"""The operator `aerie::int4_moe`: on a GPU Triton kernels, on a CPU plain PyTorch with sums in float32.

With TRITON_INTERPRET=1 CPU tensors go through the kernels too, in Triton's interpreter, for tests. Triton is imported
when a kernel is first called for.

Shape suffixes: M tokens, H hidden size, A experts a token chooses, R rows of one expert, P pairs of a token and a
choice, B blocks; E, T, N, W, R of a table as in pack.py.
"""

from contextlib import nullcontext

import torch

from aerie.kernels.int4_gemm import UnsupportedError
from aerie.kernels.int4_gemm.api import DTYPES, on_cpu
from aerie.kernels.int4_gemm.tuning import table_for
from aerie.kernels.int4_moe.pack import PackedExperts
from aerie.kernels.int4_moe.reference import local_ids
from aerie.kernels.int4_moe.tuning import TABLES, Cuts, cuts
from aerie.kernels.route import route

MOST_PAIRS = 16384
"""Of a run of the kernels, for `align` looks at each pair P / 32 times, and the workspace is 4 P H bytes."""


def run_kernels(
    x_MH: torch.Tensor,
    weights_MA: torch.Tensor,
    ids_MA: torch.Tensor,
    gate_up: PackedExperts,
    down: PackedExperts,
    expert_map: torch.Tensor | None,
    how: Cuts,
    most_pairs: int = MOST_PAIRS,
) -> torch.Tensor:
    """The Triton kernels, cut as told; what `int4_moe` does, for those who look for the best cut.

    Raises:
        UnsupportedError: the kernels do not take this dtype.
    """
    from aerie.kernels.expert_blocks import Choices
    from aerie.kernels.int4_moe import kernel

    gpu = x_MH.device.type == "cuda"
    if gpu and x_MH.dtype not in DTYPES:
        raise UnsupportedError(f"int4_moe: the kernels take {' and '.join(map(str, DTYPES))}, not {x_MH.dtype}")
    x_MH, weights_MA, ids_MA = x_MH.contiguous(), weights_MA.contiguous(), ids_MA.contiguous()
    expert_map = None if expert_map is None else expert_map.contiguous()
    y_MH = torch.empty_like(x_MH)
    most = max(most_pairs // ids_MA.shape[1], 1)
    with torch.cuda.device(x_MH.device) if gpu else nullcontext():
        for first in range(0, len(x_MH), most):
            part = slice(first, first + most)
            choices = Choices(ids_MA[part], expert_map, down.experts)
            kernel.launch(x_MH[part], weights_MA[part], choices, gate_up, down, how, y_MH[part])
    return y_MH


def _on_cpu(
    x_MH: torch.Tensor,
    weights_MA: torch.Tensor,
    ids_MA: torch.Tensor,
    gate_up: PackedExperts,
    down: PackedExperts,
    expert_map: torch.Tensor | None,
) -> torch.Tensor:
    (tokens, hidden), chosen = x_MH.shape, ids_MA.shape[1]
    here_P = local_ids(ids_MA, expert_map, down.experts).flatten()
    z_PH = torch.zeros(tokens * chosen, hidden)
    for expert in here_P[here_P >= 0].unique().tolist():
        pairs_R = (here_P == expert).nonzero().flatten()
        gated_RI = on_cpu(x_MH[pairs_R // chosen].float(), gate_up.expert(expert)).to(x_MH.dtype)
        z_PH[pairs_R] = on_cpu(gated_RI.float(), down.expert(expert))
    y_MH = torch.zeros(tokens, hidden)
    for z_MH, weight_M in zip(z_PH.view(tokens, chosen, hidden).unbind(1), weights_MA.float().unbind(1), strict=True):
        y_MH += weight_M[:, None] * z_MH
    return y_MH.to(x_MH.dtype)


def _moe(
    x_MH: torch.Tensor,
    weights_MA: torch.Tensor,
    ids_MA: torch.Tensor,
    gate_up_ETNW: torch.Tensor,
    gate_up_tables_ETRN: torch.Tensor,
    down_ETNW: torch.Tensor,
    down_tables_ETRN: torch.Tensor,
    expert_map: torch.Tensor | None,
    gate_up_group: int,
    down_group: int,
    gate_up_scales: torch.dtype,
    down_scales: torch.dtype,
) -> torch.Tensor:
    (tokens, hidden), chosen = x_MH.shape, ids_MA.shape[1]
    inner = gate_up_ETNW.shape[2] // 2
    gate_up = PackedExperts(gate_up_ETNW, gate_up_tables_ETRN, hidden, gate_up_group, gate_up_scales, True)
    down = PackedExperts(down_ETNW, down_tables_ETRN, inner, down_group, down_scales, False)
    tensors = (weights_MA, ids_MA, gate_up_ETNW, gate_up_tables_ETRN, down_ETNW, down_tables_ETRN)
    if route(x_MH, *tensors, *(() if expert_map is None else (expert_map,))) == "torch":
        return _on_cpu(x_MH, weights_MA, ids_MA, gate_up, down, expert_map)
    if not tokens or not chosen:
        return torch.zeros_like(x_MH)
    experts = down.experts if expert_map is None else len(expert_map)
    how = cuts(table_for(x_MH.device, TABLES), tokens, chosen, experts, gate_up, down)
    return run_kernels(x_MH, weights_MA, ids_MA, gate_up, down, expert_map, how)


_opaque_moe = torch.library.custom_op("aerie::int4_moe", _moe, mutates_args=())


@_opaque_moe.register_fake
def _(
    x_MH: torch.Tensor,
    weights_MA: torch.Tensor,
    ids_MA: torch.Tensor,
    gate_up_ETNW: torch.Tensor,
    gate_up_tables_ETRN: torch.Tensor,
    down_ETNW: torch.Tensor,
    down_tables_ETRN: torch.Tensor,
    expert_map: torch.Tensor | None,
    gate_up_group: int,
    down_group: int,
    gate_up_scales: torch.dtype,
    down_scales: torch.dtype,
) -> torch.Tensor:
    return x_MH.new_empty(x_MH.shape)


def int4_moe(
    x_MH: torch.Tensor,
    weights_MA: torch.Tensor,
    ids_MA: torch.Tensor,
    gate_up: PackedExperts,
    down: PackedExperts,
    expert_map: torch.Tensor | None = None,
) -> torch.Tensor:
    """Compute the sum over a of weights[m, a] * down_e (SiLU(gate_e x[m]) * up_e x[m]), e = ids[m, a].

    Args:
        x_MH: activations; on a GPU bfloat16 or float16, on a CPU float32 too.
        weights_MA: what each chosen expert's output is multiplied by, any float type.
        ids_MA: the chosen experts, int32 or int64. One that is not here adds nothing, a negative one neither.
        gate_up: packed with `gate_up`, from pack.py, on x's device.
        down: likewise, without.
        expert_map: int32 or int64; which of the experts that are here an id means, -1 for none of them. Without one,
            ids say so themselves.

    Returns:
        [M, H] in x's dtype.

    Raises:
        UnsupportedError: shapes or dtypes do not fit.
        TypeError, ValueError: see `aerie.kernels.route`.
    """
    hidden, inner = gate_up.inputs, gate_up.outputs // 2
    if not gate_up.gate_up or down.gate_up:
        raise UnsupportedError("int4_moe: only the first weights are to be packed as gate and up")
    if (down.experts, down.inputs, down.outputs) != (gate_up.experts, inner, hidden):
        raise UnsupportedError(
            f"int4_moe: gate and up of {gate_up.experts} experts are {inner} x {hidden}, "
            f"down of {down.experts} is {down.outputs} x {down.inputs}"
        )
    if x_MH.shape[1:] != (hidden,):
        raise UnsupportedError(f"int4_moe: x is {tuple(x_MH.shape)}, the experts have {hidden} inputs")
    if ids_MA.shape != weights_MA.shape or ids_MA.dim() != 2 or len(ids_MA) != len(x_MH):
        raise UnsupportedError(
            f"int4_moe: for {len(x_MH)} tokens there are {tuple(ids_MA.shape)} ids "
            f"and {tuple(weights_MA.shape)} weights"
        )
    # A custom operator costs 10 us a call in Python: eager code goes straight in.
    moe = _opaque_moe if torch.compiler.is_compiling() else _moe
    y_MH: torch.Tensor = moe(
        x_MH,
        weights_MA,
        ids_MA,
        gate_up.words_ETNW,
        gate_up.tables_ETRN,
        down.words_ETNW,
        down.tables_ETRN,
        expert_map,
        gate_up.group_size,
        down.group_size,
        gate_up.scale_dtype,
        down.scale_dtype,
    )
    return y_MH
