# SPDX-License-Identifier: Apache-2.0
import importlib.util
import inspect
import os
from collections.abc import Callable
from contextlib import AbstractContextManager
from types import ModuleType

import pytest
import torch

from aerie.draft_models import cpu_mends

UNTOUCHED = -7
DTYPES = (torch.float32, torch.int32, torch.int64)


def stock(module: ModuleType) -> ModuleType:
    """A fresh copy of a module of vLLM as installed; the one in use may have been mended."""
    spec = importlib.util.spec_from_file_location(f"stock_{module.__name__.rsplit('.', 1)[1]}", str(module.__file__))
    assert spec is not None
    assert spec.loader is not None
    fresh = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(fresh)
    return fresh


@pytest.fixture
def cpu_kernels() -> None:
    from vllm.platforms import current_platform

    if not current_platform.is_cpu():
        pytest.skip("the C++ operators are in the CPU build only")
    current_platform.import_kernels()


@pytest.mark.parametrize("dtype", DTYPES)
def test_expand_repeats_each_value_for_the_tokens_of_its_request(dtype: torch.dtype) -> None:
    values = torch.tensor([3, 0, 5, 9], dtype=dtype)
    output = torch.full((6,), UNTOUCHED, dtype=dtype)
    cpu_mends.expand(output, values, torch.tensor([2, 5, 5, 6], dtype=torch.int32), replace_from=0, replace_to=1)
    assert output.tolist() == [3, 3, 1, 1, 1, 9]


def test_expand_keeps_fractions_and_takes_no_tokens() -> None:
    output = torch.zeros(2)
    cpu_mends.expand(output, torch.tensor([0.7, 0.25]), torch.tensor([1, 2]), replace_from=0, replace_to=0)
    assert output.tolist() == pytest.approx([0.7, 0.25])
    cpu_mends.expand(torch.zeros(0), torch.tensor([0.7]), torch.tensor([0]), replace_from=0, replace_to=0)


@pytest.mark.usefixtures("cpu_kernels")
def test_expand_is_mended_in_exactly_the_versions_with_the_fault() -> None:
    """Fails when the installed vLLM no longer has the fault, or has it and is not listed: then edit AFFECTED."""
    import vllm
    from vllm.utils import cpu_triton_utils

    output = torch.full((3,), float(UNTOUCHED))
    stock(cpu_triton_utils)._expand_kernel_impl(output, torch.tensor([0.5, 2.0]), torch.tensor([1, 3]), 0, 1)
    faulty = output.tolist() != [0.5, 2.0, 2.0]
    assert cpu_mends.affected("expand", vllm.__version__) == faulty


@pytest.mark.usefixtures("cpu_kernels")
def test_top_k_is_mended_in_exactly_the_versions_with_the_fault() -> None:
    import vllm
    from vllm.v1.sample.ops import topk_topp_sampler

    try:
        stock(topk_topp_sampler).apply_top_k_only(torch.empty(0, 8), torch.empty(0, dtype=torch.int32))
        faulty = False
    except RuntimeError:
        faulty = True
    assert cpu_mends.affected("top_k", vllm.__version__) == faulty


@pytest.mark.usefixtures("cpu_kernels")
def test_mended_top_k_takes_no_tokens_and_masks_as_before(monkeypatch: pytest.MonkeyPatch) -> None:
    from vllm.v1.sample.ops import topk_topp_sampler

    monkeypatch.setattr(topk_topp_sampler, "apply_top_k_only", stock(topk_topp_sampler).apply_top_k_only)
    cpu_mends.mend_top_k()
    mended = topk_topp_sampler.apply_top_k_only
    cpu_mends.mend_top_k()
    assert topk_topp_sampler.apply_top_k_only is mended
    assert mended(torch.empty(0, 8), torch.empty(0, dtype=torch.int32)).shape == (0, 8)
    masked = mended(torch.tensor([[1.0, 3.0, 2.0]]), torch.tensor([2], dtype=torch.int32))
    assert masked.tolist() == [[float("-inf"), 3.0, 2.0]]


@pytest.mark.usefixtures("cpu_kernels")
def test_seeds_are_mended_in_exactly_the_versions_with_the_fault() -> None:
    import vllm
    from vllm.v1.worker.gpu_model_runner import GPUModelRunner

    with pytest.raises(RuntimeError, match="offset"):
        torch.Generator().get_offset()
    faulty = "gen.set_offset(gen.get_offset()" in inspect.getsource(GPUModelRunner._bookkeeping_sync)
    assert cpu_mends.affected("seed", vllm.__version__) == faulty


def attention(queries: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, *, split: bool) -> torch.Tensor:
    """VLLM's operator on the last tokens of one request: [rows, heads, size] of each query over its past."""
    from vllm import _custom_ops as ops

    (length, key_heads, size), (rows, heads, _), isa, block = keys.shape, queries.shape, "vec", 32
    blocks = -(-length // block)
    cache = torch.zeros(2, blocks, key_heads, block, size, dtype=queries.dtype)
    ops.cpu_attn_reshape_and_cache(keys, values, cache[0], cache[1], torch.arange(length), isa)
    starts, lengths = torch.tensor([0, rows], dtype=torch.int32), torch.tensor([length], dtype=torch.int32)
    shape = (1, heads, key_heads, size, lengths, queries.dtype, starts, True, -1, isa)
    metadata = ops.cpu_attn_get_scheduler_metadata(*shape, split)
    table, output = torch.arange(blocks, dtype=torch.int32)[None], torch.empty_like(queries)
    tensors = (queries, cache[0], cache[1], output, starts, lengths, size**-0.5, True, None, -1, table, 0.0, metadata)
    ops.cpu_attention_with_kv_cache(*tensors, None)
    return output


@pytest.mark.usefixtures("cpu_kernels")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_attention_that_does_not_split_gives_a_row_the_same_bits_among_drafts_and_on_two_threads(
    dtype: torch.dtype, threads: Callable[[int], AbstractContextManager[None]]
) -> None:
    length, drafts, generator = 8000, 4, torch.Generator().manual_seed(0)
    keys, values, queries = (
        torch.randn(shape, generator=generator).to(dtype)
        for shape in ((length, 3, 64), (length, 3, 64), (drafts + 1, 9, 64))
    )

    def one_by_one(count: int, *, split: bool) -> torch.Tensor:
        ends = range(length - drafts, length + 1)
        with threads(count):
            rows = [attention(queries[i : i + 1], keys[:end], values[:end], split=split) for i, end in enumerate(ends)]
        return torch.cat(rows)

    expected = one_by_one(1, split=False)
    for count in (1, 2):
        assert one_by_one(count, split=False).equal(expected)
        with threads(count):
            assert attention(queries, keys, values, split=False).equal(expected)
    assert not one_by_one(2, split=True).equal(expected), "without this fault vLLM's default could stay"


def test_attention_does_not_split_unless_someone_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(cpu_mends.SPLIT_VARIABLE, "1")
    cpu_mends.mend_split()
    assert os.environ[cpu_mends.SPLIT_VARIABLE] == "1"
    monkeypatch.delenv(cpu_mends.SPLIT_VARIABLE)
    cpu_mends.mend_split()
    assert os.environ[cpu_mends.SPLIT_VARIABLE] == "0"


def test_versions_are_compared_by_release() -> None:
    assert cpu_mends.affected("expand", "0.32.0+cpu")
    assert cpu_mends.affected("expand", "0.33.1")
    assert not cpu_mends.affected("expand", "0.34.0")


def test_apply_replaces_what_the_platform_registers(monkeypatch: pytest.MonkeyPatch) -> None:
    from vllm.utils import cpu_triton_utils

    untouched = object()
    monkeypatch.setattr(cpu_triton_utils, "_expand_kernel_impl", untouched)
    monkeypatch.setattr(cpu_mends, "affected", lambda mend, version: False)
    cpu_mends.apply()
    assert vars(cpu_triton_utils)["_expand_kernel_impl"] is untouched
    monkeypatch.setattr(cpu_mends, "affected", lambda mend, version: mend == "expand")
    cpu_mends.apply()
    cpu_mends.apply()
    assert vars(cpu_triton_utils)["_expand_kernel_impl"] is cpu_mends.expand
