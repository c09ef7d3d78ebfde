# SPDX-License-Identifier: Apache-2.0
"""The operator `aerie::int4_gemm`: on a GPU the Triton kernel, on a CPU plain PyTorch with sums in float32.

With TRITON_INTERPRET=1 CPU tensors go through the kernel too, in Triton's interpreter, for tests. Triton is imported
when the kernel is first called for.

Shape suffixes: M rows, N outputs, K inputs; T, W, R as in pack.py.
"""

from contextlib import nullcontext

import torch
from torch.nn.functional import pad

from aerie.kernels.int4_gemm import UnsupportedError, reference
from aerie.kernels.int4_gemm.pack import STEP, TILE, PackedWeight, steps, unpack
from aerie.kernels.int4_gemm.tuning import BUCKETS, Cut, cut, table_for
from aerie.kernels.route import FUSION, route

DTYPES = (torch.bfloat16, torch.float16)


def run_kernel(
    x_MK: torch.Tensor,
    weight: PackedWeight,
    bias_N: torch.Tensor | None,
    residual: torch.Tensor | None,
    how: Cut,
) -> torch.Tensor:
    """One run of the Triton kernel, cut as told; what `int4_gemm` does, for those who look for the best cut.

    Raises:
        UnsupportedError: the kernel does not take this dtype.
    """
    import triton.language as tl

    from aerie.kernels.int4_gemm import kernel

    gpu = x_MK.device.type == "cuda"
    if gpu and x_MK.dtype not in DTYPES:
        raise UnsupportedError(f"int4_gemm: the kernel takes {' and '.join(map(str, DTYPES))}, not {x_MK.dtype}")
    rows, inputs = x_MK.shape
    y = x_MK.new_empty(rows, weight.outputs // 2 if weight.gate_up else weight.outputs)
    grid = (-(-weight.outputs // how.tile_n), how.splits, -(-rows // how.tile_m))
    partial = None
    if how.splits > 1:
        partial = x_MK.new_empty(how.splits, grid[0], how.tile_m, how.tile_n, dtype=torch.float32)
    with torch.cuda.device(x_MK.device) if gpu else nullcontext():
        kernel.int4_gemm[grid](
            x_MK.contiguous(), weight.words_TNW, weight.tables_TRN, weight.control, bias_N,
            None if residual is None else residual.contiguous(), y, partial,
            rows, weight.outputs, inputs, steps(inputs),
            group=weight.group_size,
            asymmetric=weight.asymmetric,
            scale_dtype=tl.bfloat16 if weight.scale_dtype == torch.bfloat16 else tl.float16,
            silu_mul=weight.gate_up,
            splits=how.splits,
            tile_n=how.tile_n,
            tile_m=how.tile_m,
            stages=how.stages,
            even=weight.outputs % how.tile_n == 0,
            whole=inputs % STEP == 0,
            ptx=gpu and torch.version.hip is None,
            num_warps=how.warps,
            num_stages=how.stages,
            enable_fp_fusion=FUSION,
        )  # fmt: skip
    return y


def on_cpu(
    x_MK: torch.Tensor,
    weight: PackedWeight,
    bias_N: torch.Tensor | None = None,
    residual: torch.Tensor | None = None,
) -> torch.Tensor:
    """What `int4_gemm` does, in plain PyTorch with sums in float32."""
    rows = x_MK.shape[0]
    weight_NK = reference.dequantise(*unpack(weight), weight.group_size, torch.float32)
    # As in the kernel: always the same product up to 16 rows, so that a row does not depend on how many come with it.
    missing = (0, 0, 0, max(BUCKETS[0] - rows, 0))
    residual = None if residual is None else pad(residual, missing)
    return reference.int4_gemm(pad(x_MK, missing), weight_NK, bias_N, residual, weight.gate_up)[:rows].to(x_MK.dtype)


def _gemm(
    x_MK: torch.Tensor,
    words_TNW: torch.Tensor,
    tables_TRN: torch.Tensor,
    control: torch.Tensor,
    bias_N: torch.Tensor | None,
    residual: torch.Tensor | None,
    group_size: int,
    scale_dtype: torch.dtype,
    gate_up: bool,
) -> torch.Tensor:
    rows, inputs = x_MK.shape
    outputs = words_TNW.shape[1]
    asymmetric = tables_TRN.shape[1] > TILE // group_size
    weight = PackedWeight(words_TNW, tables_TRN, control, outputs, inputs, group_size, asymmetric, scale_dtype, gate_up)
    if route(x_MK, words_TNW, tables_TRN, control) == "torch":
        return on_cpu(x_MK, weight, bias_N, residual)
    if not rows:
        return x_MK.new_empty(0, outputs // 2 if gate_up else outputs)
    return run_kernel(x_MK, weight, bias_N, residual, cut(table_for(x_MK.device), rows, outputs, inputs, group_size))


# The counters in `control` are as before when it returns, so nothing is declared as mutated.
_opaque_gemm = torch.library.custom_op("aerie::int4_gemm", _gemm, mutates_args=())


@_opaque_gemm.register_fake
def _(
    x_MK: torch.Tensor,
    words_TNW: torch.Tensor,
    tables_TRN: torch.Tensor,
    control: torch.Tensor,
    bias_N: torch.Tensor | None,
    residual: torch.Tensor | None,
    group_size: int,
    scale_dtype: torch.dtype,
    gate_up: bool,
) -> torch.Tensor:
    outputs = words_TNW.shape[1]
    return x_MK.new_empty(x_MK.shape[0], outputs // 2 if gate_up else outputs)


def int4_gemm(
    x: torch.Tensor,
    weight: PackedWeight,
    bias_N: torch.Tensor | None = None,
    residual: torch.Tensor | None = None,
) -> torch.Tensor:
    """Compute act(x W^T + bias) + residual for x [..., K]; act is SiLU(gate) * up for a `gate_up` weight.

    Args:
        x: activations; on a GPU bfloat16 or float16, on a CPU float32 too.
        weight: from pack.py, on x's device. Not on two streams at a time: its counters are in use during a call.
        bias_N: [N], added before the activation; of a `gate_up` weight gate's, then up's.
        residual: [..., N], or [..., N / 2] of a `gate_up` weight; added before the one rounding.

    Returns:
        [..., N], or [..., N / 2] of a `gate_up` weight, in x's dtype.

    Raises:
        UnsupportedError: shapes or dtypes do not fit.
        TypeError, ValueError: see `aerie.kernels.route`.
    """
    columns = weight.outputs // 2 if weight.gate_up else weight.outputs
    shape = (*x.shape[:-1], columns)
    if x.shape[-1] != weight.inputs:
        raise UnsupportedError(f"int4_gemm: x has {x.shape[-1]} inputs, the weight {weight.inputs}")
    if bias_N is not None and bias_N.shape != (weight.outputs,):
        raise UnsupportedError(f"int4_gemm: the bias is {tuple(bias_N.shape)}, not ({weight.outputs},)")
    if residual is not None and residual.shape != shape:
        raise UnsupportedError(f"int4_gemm: the residual is {tuple(residual.shape)}, not {tuple(shape)}")
    # A custom operator costs 10 us a call in Python: eager code goes straight in.
    gemm = _opaque_gemm if torch.compiler.is_compiling() else _gemm
    y_MN: torch.Tensor = gemm(
        x.reshape(-1, weight.inputs),
        weight.words_TNW,
        weight.tables_TRN,
        weight.control,
        bias_N,
        None if residual is None else residual.reshape(-1, columns),
        weight.group_size,
        weight.scale_dtype,
        weight.gate_up,
    )
    return y_MN.view(shape)
