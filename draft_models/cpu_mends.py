# SPDX-License-Identifier: Apache-2.0
"""Mends of vLLM's CPU path that a server needs, each bound to the versions that need it (read in 0.32.0 and 0.33.0).

1. `vllm.utils.cpu_triton_utils._expand_kernel_impl` spreads one value per request over that request's drafted tokens.
   It hands the C++ operator a temporary int64 copy of every tensor that is not int64 and never copies the result back:
   temperature, top_k and top_p reach the rejection sampler as uninitialised memory, and every request at
   temperature > 0 with a draft is sampled from a wrong distribution (vllm-project/vllm#55005).
   vLLM's registry of kernel replacements cannot take the mend: the worker registers the platform's own entry after the
   plugins have run. So the faulty function is replaced where that entry is taken from.
2. `vllm.v1.sample.ops.topk_topp_sampler.apply_top_k_only` takes the maximum of top_k over the drafted tokens. In a step
   without any, such as the first of a lone request, that raises, and the engine dies: one request with top_k and
   without top_p ends the server.
3. `GPUModelRunner._bookkeeping_sync` takes back what a request with a seed drew before its whole prompt was in, by the
   generator's offset, which CPU generators do not have: it raises, and the engine dies. One long prompt with a seed, or
   several at once that do not fit a step, ends the server.
4. CPU attention (`v1/attention/backends/cpu_attn.py`) splits a request's keys and values over the OpenMP threads by
   what else is in the step. A step that verifies drafts then sums in another order than one that makes one token, and
   from two threads on greedy answers with a draft differ from those without (docs/decisions/0013). vLLM has a switch
   for it, `VLLM_CPU_ATTN_SPLIT_KV`; a value that is set already stays.
"""

import functools
import os
from typing import TYPE_CHECKING, Any, Final, Literal

if TYPE_CHECKING:
    import torch
    from vllm.v1.outputs import SamplerOutput
    from vllm.v1.worker.cpu_model_runner import CPUModelRunner

SPLIT_VARIABLE: Final = "VLLM_CPU_ATTN_SPLIT_KV"
Mend = Literal["expand", "top_k", "seed"]

AFFECTED: Final[dict[Mend, frozenset[tuple[int, ...]]]] = {
    "expand": frozenset({(0, 32), (0, 33)}),
    "top_k": frozenset({(0, 32), (0, 33)}),
    "seed": frozenset({(0, 32), (0, 33)}),
}
"""Versions (major, minor) of vLLM with each fault. A test fails when the installed one is listed wrongly."""


def affected(mend: Mend, version: str) -> bool:
    """Whether this version of vLLM needs the mend."""
    from packaging.version import Version

    return Version(version).release[:2] in AFFECTED[mend]


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


def mend_expand() -> None:
    """Let the platform register `expand`; light, and of no effect where the CPU path is not used."""
    from vllm.utils import cpu_triton_utils

    cpu_triton_utils._expand_kernel_impl = expand


def mend_top_k() -> None:
    """Let top-k pass over no tokens; does nothing but on CPU platforms, or when called again."""
    from vllm.platforms import current_platform

    if not current_platform.is_cpu():
        return
    from vllm.v1.sample.ops import topk_topp_sampler

    stock = topk_topp_sampler.apply_top_k_only
    if hasattr(stock, "__wrapped__"):
        return

    @functools.wraps(stock)
    def apply_top_k_only(logits: "torch.Tensor", k: "torch.Tensor") -> "torch.Tensor":
        return stock(logits, k) if len(logits) else logits

    topk_topp_sampler.apply_top_k_only = apply_top_k_only


def mend_seed() -> None:
    """Take back what is drawn for unfinished prompts by the generator's state; as `mend_top_k` otherwise."""
    from vllm.platforms import current_platform

    if not current_platform.is_cpu():
        return
    from vllm.v1.worker.cpu_model_runner import CPUModelRunner

    if hasattr(CPUModelRunner._sample, "__wrapped__"):
        return
    sample, bookkeep = CPUModelRunner._sample, CPUModelRunner._bookkeeping_sync
    # Between the two calls of a step; a process has one runner that steps.
    before: dict[int, torch.Tensor] = {}

    @functools.wraps(sample)
    def _sample(self: "CPUModelRunner", *arguments: Any) -> "SamplerOutput":  # noqa: ANN401 -- vLLM's own
        generators = self.input_batch.generators
        before.clear()
        before.update({index: generators[index].get_state() for index in _unfinished(self)})
        return sample(self, *arguments)

    @functools.wraps(bookkeep)
    def _bookkeeping_sync(self: "CPUModelRunner", *arguments: Any) -> tuple[Any, ...]:  # noqa: ANN401
        generators = self.input_batch.generators
        hidden = {index: generators.pop(index) for index in before}
        try:
            return bookkeep(self, *arguments)
        finally:
            for index, generator in hidden.items():
                generator.set_state(before[index])
            generators.update(hidden)

    # The class's own attributes, not those it inherits; mypy knows no assignment to methods.
    setattr(CPUModelRunner, "_sample", _sample)  # noqa: B010
    setattr(CPUModelRunner, "_bookkeeping_sync", _bookkeeping_sync)  # noqa: B010


def _unfinished(runner: "CPUModelRunner") -> list[int]:
    """Requests with a seed whose prompt is not wholly in: what is drawn for them is thrown away."""
    batch = runner.input_batch
    discarded = runner.discard_request_mask.np[: batch.num_reqs].nonzero()[0].tolist()
    return [index for index in discarded if index in batch.generators]


def mend_split() -> None:
    """Have attention give a row the same bits whatever rows come with it, on any number of threads.

    Engines without a draft too: their answers are what those with one are held to.
    """
    os.environ.setdefault(SPLIT_VARIABLE, "0")


def apply() -> None:
    """Apply the mends the installed vLLM needs. Idempotent."""
    from importlib.metadata import PackageNotFoundError, version

    try:
        installed = version("vllm-cpu")
    except PackageNotFoundError:
        installed = version("vllm")
    if affected("expand", installed):
        mend_expand()
    if affected("top_k", installed):
        mend_top_k()
    if affected("seed", installed):
        mend_seed()
    mend_split()
