# SPDX-License-Identifier: Apache-2.0
"""Mixture of experts with 4-bit weights and 16-bit activations for GPUs, in Triton, on the inner loop of int4_gemm.

Which experts it takes is said here, apart from the operator, for those who only ask: this file imports nothing but a
file that imports nothing.
"""

from aerie.kernels import int4_gemm


def unsupported(hidden: int, inner: int, group_size: int) -> str | None:
    """Why experts of these sizes cannot be served, None when they can. The group size is gate's, up's and down's."""
    for what, inputs in (("hidden", hidden), ("inner", inner)):
        if (reason := int4_gemm.unsupported(inputs, group_size)) is not None:
            return f"{what} size: {reason}"
    return None
