# SPDX-License-Identifier: Apache-2.0
"""Where one route of the operator becomes faster than the other; measured by benchmarks/kernels/w4a16_cpu.py."""

import torch

# Rows from which dequantising tiles to float32 beats the INT4 operator, whose cost grows with each row. Above the
# rows of a verification step (8) by a wide margin, so that speculation never changes the route.
DENSE_FROM_ROWS = {"AVX2": 128, "AVX512": 128}
# Output rows dequantised at a time: a tile should stay in the second-level cache.
TILE_ROWS = 256


def dense_from_rows() -> int | None:
    """Rows of the activation from which tiles are dequantised on this instruction set, None for never."""
    return DENSE_FROM_ROWS.get(torch.backends.cpu.get_cpu_capability())
