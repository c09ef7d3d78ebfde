# SPDX-License-Identifier: Apache-2.0
"""Which of an operator's two implementations computes: Triton's kernel or torch's operators.

Imports neither a GPU nor Triton: whoever only asks needs neither.
"""

import importlib.util
import os
from typing import Literal

import torch

Route = Literal["triton", "torch"]

INTERPRET_VARIABLE = "TRITON_INTERPRET"
"""Triton reads it while it is imported: set it before."""
FUSION = True
"""Whether a compiled kernel may fuse a product and a sum. Said at each launch: unasked, Triton 3.10 will not."""
_TRUE = ("1", "true", "on", "y", "yes")  # what Triton takes for true


def interpreted() -> bool:
    """Whether this process asked for Triton's interpreter, which runs kernels on a CPU."""
    return os.environ.get(INTERPRET_VARIABLE, "").lower() in _TRUE


def route(*tensors: torch.Tensor) -> Route:
    """Triton on a GPU and in its interpreter, torch on any other CPU.

    Raises:
        ImportError: Triton is needed and not installed.
        TypeError: a bfloat16 tensor is bound for the interpreter, which computes nonsense from it and says nothing.
        ValueError: the tensors are not on one device, or on one that is neither a CPU nor a CUDA GPU.
    """
    devices = {tensor.device for tensor in tensors}
    if len(devices) != 1 or (device := devices.pop()).type not in ("cpu", "cuda"):
        found = ", ".join(sorted({str(tensor.device) for tensor in tensors}))
        raise ValueError(f"tensors on {found}: they must be on one CPU or one CUDA GPU")
    if device.type == "cpu" and not interpreted():
        return "torch"
    if importlib.util.find_spec("triton") is None:
        raise ImportError("this operator needs Triton, which is not installed: requirements/cuda.lock has it")
    if interpreted() and any(tensor.dtype == torch.bfloat16 for tensor in tensors):
        raise TypeError(f"Triton's interpreter is silently wrong in bfloat16: unset {INTERPRET_VARIABLE}")
    return "triton"
