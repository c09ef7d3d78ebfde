# SPDX-License-Identifier: Apache-2.0
"""The draft's prologue against its float64 reference, on whichever route this process takes: torch's operators on a
CPU, Triton's kernel on a GPU and, called by test_draft_step_interpreted.py, in Triton's interpreter.
"""

import pytest
import torch

from aerie.kernels.draft_prologue import api, reference
from aerie.kernels.route import interpreted

VOCABULARY = 37
TOKENS = [1, 3, 17]
HIDDEN = [1, 64, 200]
EPS = 1e-6
# ||error|| / ||reference||: a row is rounded before and after its weight is multiplied in; float32 sums.
TOLERANCE = {torch.float32: 1e-6, torch.float16: 1e-3, torch.bfloat16: 8e-3}
DTYPES = [pytest.param(dtype, id=str(dtype)) for dtype in TOLERANCE if not (interpreted() and dtype == torch.bfloat16)]
NO_GPU = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")


def inputs(tokens: int, hidden: int, dtype: torch.dtype, device: str = "cpu") -> tuple[torch.Tensor, ...]:
    """ids, table, hidden states and both norms' weights; the states' magnitudes differ by token, as real ones do."""
    table = torch.randn(VOCABULARY, hidden)
    states = torch.randn(tokens, hidden) * torch.logspace(-1, 2, tokens)[:, None]
    weights = torch.randn(2, hidden).unbind()
    ids = torch.randint(VOCABULARY, (tokens,))
    return ids.to(device), *(one.to(device, dtype) for one in (table, states, *weights))


def relative_error(found: torch.Tensor, expected: torch.Tensor) -> float:
    return float((found.double() - expected).norm() / expected.norm())


def check(tokens: int, hidden: int, dtype: torch.dtype, device: str) -> None:
    torch.manual_seed(tokens + hidden)
    ids, table, states, embed_weight, hidden_weight = inputs(tokens, hidden, dtype, device)
    for ids_type in (torch.int32, torch.int64):
        x, residual = api.draft_prologue(ids.to(ids_type), table, states, embed_weight, hidden_weight, eps=EPS)
        assert (x.dtype, x.shape, x.is_contiguous()) == (dtype, (tokens, 2 * hidden), True)
        expected = reference.draft_prologue(ids, table, states, embed_weight, hidden_weight, eps=EPS)
        for half in (slice(hidden), slice(hidden, None)):
            assert relative_error(x[:, half], expected[:, half]) < TOLERANCE[dtype]
        assert residual is states


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("hidden", HIDDEN)
@pytest.mark.parametrize("tokens", TOKENS)
def test_prologue_equals_reference(tokens: int, hidden: int, dtype: torch.dtype) -> None:
    check(tokens, hidden, dtype, "cpu")


@NO_GPU
@pytest.mark.gpu
@pytest.mark.parametrize("dtype", DTYPES)
def test_on_a_gpu(dtype: torch.dtype) -> None:
    for tokens in TOKENS:
        for hidden in (*HIDDEN, 2560, 4096, 5120):
            check(tokens, hidden, dtype, "cuda")


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("tokens", TOKENS)
def test_the_residual_may_be_the_normed_state(tokens: int, dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    arguments = inputs(tokens, 48, dtype)
    plain, _ = api.draft_prologue(*arguments, eps=EPS)
    x, residual = api.draft_prologue(*arguments, eps=EPS, norm_before_residual=True)
    assert torch.equal(x, plain)
    assert torch.equal(residual, x[:, 48:])
    # The layer adds to its residual in place, which must not reach x.
    assert residual.is_contiguous()
    residual.fill_(float("nan"))
    assert torch.equal(x, plain)


@pytest.mark.parametrize("dtype", DTYPES)
def test_embeddings_may_come_in_place_of_ids(dtype: torch.dtype) -> None:
    torch.manual_seed(1)
    ids, table, *others = inputs(5, 48, dtype)
    by_id, _ = api.draft_prologue(ids, table, *others, eps=EPS)
    given, _ = api.draft_prologue(None, table[ids], *others, eps=EPS)
    assert torch.equal(given, by_id)


def test_rows_may_lie_apart() -> None:
    """Hidden states and table as parts of wider tensors whose other columns are NaN: none is read."""
    torch.manual_seed(2)
    ids, table, states, *weights = inputs(3, 40, torch.float32)
    wide_table, wide_states = torch.full((VOCABULARY, 64), torch.nan), torch.full((3, 56), torch.nan)
    wide_table[:, 8:48], wide_states[:, :40] = table, states
    expected, _ = api.draft_prologue(ids, table, states, *weights, eps=EPS)
    x, _ = api.draft_prologue(ids, wide_table[:, 8:48], wide_states[:, :40], *weights, eps=EPS)
    assert torch.equal(x, expected)


def test_no_tokens_are_no_error() -> None:
    ids, table, states, *weights = inputs(1, 40, torch.float32)
    x, residual = api.draft_prologue(ids[:0], table, states[:0], *weights, eps=EPS, norm_before_residual=True)
    assert (x.shape, residual.shape) == ((0, 80), (0, 40))


@pytest.mark.parametrize("stray", [-1, VOCABULARY])
def test_ids_outside_the_table_reach_no_other_memory(stray: int) -> None:
    torch.manual_seed(3)
    _, table, states, *weights = inputs(2, 40, torch.float32)
    room = torch.full((VOCABULARY + 2, 40), torch.nan)
    room[1:-1] = table
    ids = torch.tensor([stray, 4])
    if not interpreted():
        with pytest.raises(IndexError):
            api.draft_prologue(ids, room[1:-1], states, *weights, eps=EPS)
        return
    x, _ = api.draft_prologue(ids, room[1:-1], states, *weights, eps=EPS)
    assert not x[0, :40].any()
    assert x[0, 40:].all()
    assert torch.equal(x[1], api.draft_prologue(torch.tensor([0, 4]), table, states, *weights, eps=EPS)[0][1])


def test_compiled_code_calls_it_whole() -> None:
    torch.manual_seed(4)

    @torch.compile(fullgraph=True, backend="eager", dynamic=True)
    def compiled(*arguments: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return api.draft_prologue(*arguments, eps=EPS, norm_before_residual=True)

    for tokens in (2, 5):
        arguments = inputs(tokens, 48, torch.float32)
        expected = api.draft_prologue(*arguments, eps=EPS, norm_before_residual=True)
        assert all(map(torch.equal, compiled(*arguments), expected))


@pytest.mark.parametrize("keep", [False, True])
@pytest.mark.parametrize("tokens", [1, 3])
def test_the_operator_is_what_it_tells_torch(tokens: int, keep: bool) -> None:
    ids, *floats = inputs(tokens, 48, torch.float32)
    torch.library.opcheck(torch.ops.aerie.draft_prologue.default, (ids, *floats, EPS, keep))
    torch.library.opcheck(torch.ops.aerie.draft_prologue.default, (None, floats[1], *floats[1:], EPS, keep))


def test_what_does_not_fit_is_refused() -> None:
    ids, table, states, *weights = inputs(3, 40, torch.float32)
    with pytest.raises(ValueError, match="must have 40 columns"):
        api.draft_prologue(ids, table[:, :39], states, *weights, eps=EPS)
    with pytest.raises(TypeError, match="one dtype"):
        api.draft_prologue(ids, table.half(), states, *weights, eps=EPS)
    with pytest.raises(ValueError, match="as many as the 3 hidden states"):
        api.draft_prologue(ids[:2], table, states, *weights, eps=EPS)
    with pytest.raises(ValueError, match="without gaps"):
        api.draft_prologue(ids, table, states.T.contiguous().T, *weights, eps=EPS)
