# SPDX-License-Identifier: Apache-2.0
"""Say in the log, once a model is loaded, which kernel serves which of its layers; the unquantised ones too.

vLLM has no hook after loading, so `load_model` of its loaders' base class is wrapped; main model and draft both come
that way. Read against vLLM 0.32.0 and 0.33.0.
"""

import functools
import logging
from collections import Counter, defaultdict
from typing import TYPE_CHECKING, Any

from aerie.quant.survey import pattern
from aerie.quant.vllm_linear import own_kernel

if TYPE_CHECKING:
    from torch import nn

# A child of vLLM's logger, for that is the one vLLM gives a handler in its worker processes.
logger = logging.getLogger("vllm.aerie.kernels")


def server(layer: "nn.Module") -> str:
    """What serves a layer: its kernel, else its method, as it describes itself or by the name of its class.

    Of a kernel of vLLM's that ours could have replaced it is told why ours did not.
    """
    from vllm.model_executor.kernels.linear import MPLinearKernel

    method: Any = layer.quant_method
    kernel = getattr(getattr(layer, "scheme", None), "kernel", None) or getattr(method, "kernel", None)
    if kernel is None and (experts := getattr(method, "experts_cls", None)) is not None:
        return str(experts.__name__)
    serving = kernel or method
    if hasattr(serving, "description"):
        return str(serving.description())
    name = type(serving).__name__
    if isinstance(kernel, MPLinearKernel) and (ours := own_kernel()) is not None:
        why = ours.can_implement(kernel.config)[1] or "vLLM was told to leave it out"
        return f"{name} (not {ours.__name__}: {why})"
    return f"{name} ({str(layer.params_dtype).removeprefix('torch.')})" if name.startswith("Unquantized") else name


def summary(model: "nn.Module") -> list[str]:
    """A line a kernel: how many layers it serves, and which, by pattern."""
    from vllm.model_executor.layers.fused_moe import RoutedExperts
    from vllm.model_executor.layers.linear import LinearBase
    from vllm.model_executor.layers.vocab_parallel_embedding import VocabParallelEmbedding

    served: defaultdict[str, Counter[str]] = defaultdict(Counter)
    for name, layer in model.named_modules():
        if isinstance(layer, LinearBase | VocabParallelEmbedding | RoutedExperts):
            served[server(layer)][pattern(name)] += 1
    return [
        f"{by} serves {names.total()} layers: "
        + ", ".join(f"{name} ({count})" if count > 1 else name for name, count in names.items())
        for by, names in served.items()
    ]


class TellsKernels:
    """vLLM's workers inherit it (`--worker-extension-cls`), so that the server can ask them by name."""

    model_runner: Any

    def aerie_kernels(self) -> list[str]:
        """The lines of `summary` for the main model and the draft, each behind the name of its class."""
        drafting = [getattr(self.model_runner, name, None) for name in ("drafter", "speculator")]
        models = [self.model_runner.get_model(), *(getattr(part, "model", None) for part in drafting)]
        return [f"{type(model).__name__}: {line}" for model in models if model is not None for line in summary(model)]


def register() -> None:
    """Wrap the loaders; does nothing when called again."""
    from vllm.model_executor.model_loader.base_loader import BaseModelLoader

    stock = BaseModelLoader.load_model
    if getattr(stock, "_aerie_reports", False):
        return

    @functools.wraps(stock)
    def load_model(*arguments: Any, **options: Any) -> "nn.Module":  # noqa: ANN401 -- vLLM's, passed on
        model: nn.Module = stock(*arguments, **options)
        for line in summary(model):
            logger.info("%s: %s", type(model).__name__, line)
        return model

    load_model._aerie_reports = True  # type: ignore[attr-defined]  # a mark, so that it is wrapped once
    BaseModelLoader.load_model = load_model  # type: ignore[method-assign]  # there is no hook
