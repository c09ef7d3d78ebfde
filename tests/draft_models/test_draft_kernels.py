# SPDX-License-Identifier: Apache-2.0
"""Who computes the parts of a draft step: the choice, and which weights our operators can read."""

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from aerie.draft_models import draft_kernels
from aerie.draft_models.draft_kernels import CHOICE_VARIABLE, PARTS, DraftKernelsError, ours, plain_weight

GPU = "NVIDIA H200"


@pytest.fixture
def on(monkeypatch: pytest.MonkeyPatch) -> Callable[[bool], None]:
    """Pretend that vLLM was built for CUDA and runs on GPU, or for a CPU."""

    def pretend(cuda: bool) -> None:
        platform = SimpleNamespace(is_cuda=lambda: cuda, is_cpu=lambda: not cuda, get_device_name=lambda: GPU)
        monkeypatch.setattr("vllm.platforms.current_platform", platform)

    return pretend


@pytest.mark.parametrize("cuda", [False, True])
@pytest.mark.parametrize("part", PARTS)
def test_a_choice_is_obeyed(
    part: draft_kernels.Part, cuda: bool, on: Callable[[bool], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    on(cuda)
    for choice, by_us in (("aerie", True), ("torch", False)):
        monkeypatch.setenv(CHOICE_VARIABLE, choice)
        assert ours(part) == (by_us, f"AERIE_DRAFT_KERNELS={choice}")
    monkeypatch.setenv(CHOICE_VARIABLE, "triton")
    with pytest.raises(DraftKernelsError, match="AERIE_DRAFT_KERNELS=triton: set it to auto"):
        ours(part)


@pytest.mark.parametrize("part", PARTS)
def test_without_a_choice_only_a_committed_measurement_decides(
    part: draft_kernels.Part, on: Callable[[bool], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv(CHOICE_VARIABLE, raising=False)
    assert not any(draft_kernels.AHEAD.values()), "name the result file that shows it, and hold its figures here"
    on(True)
    assert ours(part) == (False, "no measurement shows ours ahead on NVIDIA H200")
    monkeypatch.setattr(draft_kernels, "AHEAD", {part: {GPU}})
    assert ours(part) == (True, "measured ahead on NVIDIA H200")
    on(False)
    assert ours(part) == (False, "Triton has no CPU backend")


def test_weights_that_are_packed_or_sharded_are_left_to_vllm() -> None:
    from vllm.model_executor.layers.linear import LinearMethodBase, UnquantizedLinearMethod
    from vllm.model_executor.layers.vocab_parallel_embedding import UnquantizedEmbeddingMethod, VocabParallelEmbedding

    class Quantised(LinearMethodBase):
        def create_weights(self, *_: object, **__: object) -> None: ...
        def apply(self, *_: object, **__: object) -> torch.Tensor:
            raise NotImplementedError

    def linear(method: Any) -> torch.nn.Module:  # noqa: ANN401 -- vLLM sets it on a module, undeclared
        layer = torch.nn.Linear(4, 3)
        layer.quant_method = method
        return layer

    def embedding(ranks: int) -> torch.nn.Module:
        layer: Any = VocabParallelEmbedding.__new__(VocabParallelEmbedding)
        torch.nn.Module.__init__(layer)
        layer.weight, layer.tp_size = torch.nn.Parameter(torch.ones(4, 3)), ranks
        layer.quant_method = UnquantizedEmbeddingMethod()
        return layer  # type: ignore[no-any-return]  # made without vLLM's process groups

    assert plain_weight(plain := linear(UnquantizedLinearMethod())) is plain.weight
    assert plain_weight(linear(Quantised())) is None
    assert plain_weight(whole := embedding(1)) is whole.weight
    assert plain_weight(embedding(2)) is None
