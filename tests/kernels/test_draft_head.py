# SPDX-License-Identifier: Apache-2.0
"""The draft's greedy choice against its float64 reference, on whichever route this process takes: torch's operators on
a CPU, Triton's kernels on a GPU and, called by test_draft_step_interpreted.py, in Triton's interpreter.

Two routes may choose differently where logits are nearly equal, so a choice is held to its float64 logit: within
TOLERANCE times the largest |logit| of the best. Where logits are exact in every dtype the ids must be equal.
"""

import pytest
import torch

from aerie.kernels.draft_head import api, reference
from aerie.kernels.route import interpreted

TOKENS = [1, 3, 17]
HIDDEN = [8, 64, 200]
# Below, at and beyond a tile of 128 rows; vLLM's smallest padding is 64.
VOCABULARIES = [1, 128, 129, 1000]
# Triton compares float32 sums; torch's operators round each logit to the dtype, by half a unit in the last place.
TOLERANCE = {torch.float32: 1e-6, torch.float16: 2.0**-10, torch.bfloat16: 2.0**-7}
DTYPES = [pytest.param(dtype, id=str(dtype)) for dtype in TOLERANCE if not (interpreted() and dtype == torch.bfloat16)]
NO_GPU = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")


def tensors(
    tokens: int, hidden: int, vocabulary: int, dtype: torch.dtype, device: str = "cpu"
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Hidden states, lm_head and offsets to target ids, ascending and different for each id."""
    targets = torch.randperm(4 * vocabulary)[:vocabulary].sort().values
    states, weight = torch.randn(tokens, hidden), torch.randn(vocabulary, hidden) / hidden**0.5
    return states.to(device, dtype), weight.to(device, dtype), (targets - torch.arange(vocabulary)).to(device)


def check(tokens: int, hidden: int, vocabulary: int, dtype: torch.dtype, device: str) -> None:
    torch.manual_seed(tokens + hidden + vocabulary)
    states, weight, d2t = tensors(tokens, hidden, vocabulary, dtype, device)
    drafts = api.draft_tokens(states, weight)
    assert (drafts.dtype, drafts.shape) == (torch.int64, (tokens,))
    logits = reference.logits(states, weight)
    chosen, best = logits.gather(1, drafts[:, None])[:, 0], logits.amax(1)
    assert (best - chosen <= TOLERANCE[dtype] * logits.abs().amax(1)).all()
    assert torch.equal(api.draft_tokens(states, weight, d2t), drafts + d2t[drafts])


def check_ties(vocabulary: int, dtype: torch.dtype, device: str) -> None:
    """Small integers, exact in every dtype: many logits are equal, within a tile and across tiles."""
    torch.manual_seed(vocabulary)
    states = torch.randint(-2, 3, (17, 40)).to(device, dtype)
    weight = torch.randint(-1, 2, (vocabulary, 40)).to(device, dtype)
    logits = reference.logits(states, weight)
    if vocabulary == 1000:
        ties = (logits == logits.amax(1, keepdim=True)).nonzero().tolist()
        # Otherwise it would prove little: tokens whose equal best logits are in different tiles.
        assert any(len({column // 128 for row, column in ties if row == token}) > 1 for token in range(17))
    first = [row.index(max(row)) for row in logits.tolist()]
    assert api.draft_tokens(states, weight).tolist() == first
    assert reference.draft_tokens(states, weight, None).tolist() == first


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("vocabulary", VOCABULARIES)
@pytest.mark.parametrize("hidden", HIDDEN)
@pytest.mark.parametrize("tokens", TOKENS)
def test_the_largest_logit_is_chosen(tokens: int, hidden: int, vocabulary: int, dtype: torch.dtype) -> None:
    check(tokens, hidden, vocabulary, dtype, "cpu")


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("vocabulary", VOCABULARIES)
def test_of_equal_logits_the_lowest_id_wins(vocabulary: int, dtype: torch.dtype) -> None:
    check_ties(vocabulary, dtype, "cpu")


@NO_GPU
@pytest.mark.gpu
@pytest.mark.parametrize("dtype", DTYPES)
def test_on_a_gpu(dtype: torch.dtype) -> None:
    for tokens in (*TOKENS, 64, api.MOST_TOKENS + 7):
        for hidden, vocabulary in ((200, 1), (200, 1000), (4096, 32000)):
            check(tokens, hidden, vocabulary, dtype, "cuda")
    for vocabulary in VOCABULARIES:
        check_ties(vocabulary, dtype, "cuda")


@pytest.mark.parametrize("at", [(3, 700), (127, 128), (130, 131), (0, 999)])
def test_ties_within_and_across_tiles(at: tuple[int, int]) -> None:
    states, weight = torch.ones(2, 8), torch.zeros(1000, 8)
    weight[list(at)] = 1
    assert api.draft_tokens(states, weight).tolist() == [at[0]] * 2
    assert api.draft_tokens(-states, weight).tolist() == [0 if 0 not in at else 1] * 2


def test_negative_logits_do_not_lose_to_padding() -> None:
    weight = torch.full((130, 8), -1.0)
    weight[129] = -0.5
    assert api.draft_tokens(torch.ones(3, 8), weight).tolist() == [129] * 3


@pytest.mark.parametrize("dtype", [torch.int32, torch.int64])
@pytest.mark.parametrize("tokens", TOKENS)
def test_next_input_ids_are_written(tokens: int, dtype: torch.dtype) -> None:
    """Into the runner's own buffer, and not beyond."""
    torch.manual_seed(tokens)
    states, weight, d2t = tensors(tokens, 64, 300, torch.float32)
    buffer = torch.full((tokens + 5,), -7, dtype=dtype)
    drafts = api.draft_tokens(states, weight, d2t, buffer[2 : tokens + 2])
    assert buffer.tolist() == [-7, -7, *drafts.tolist(), -7, -7, -7]


def test_more_tokens_than_a_tile() -> None:
    torch.manual_seed(0)
    states, weight, d2t = tensors(api.MOST_TOKENS + 7, 64, 300, torch.float32)
    assert torch.equal(api.draft_tokens(states, weight, d2t), reference.draft_tokens(states, weight, d2t))
    assert api.draft_tokens(states[:0], weight, d2t).shape == (0,)


def test_rows_may_lie_apart() -> None:
    torch.manual_seed(1)
    states, weight, d2t = tensors(3, 40, 300, torch.float32)
    wide = torch.full((3, 99), torch.nan)
    wide[:, 5:45] = states
    assert torch.equal(api.draft_tokens(wide[:, 5:45], weight, d2t), api.draft_tokens(states, weight, d2t))


@pytest.mark.skipif(not interpreted(), reason="torch's argmax calls a NaN the largest")
@pytest.mark.parametrize("vocabulary", [1, 130])
def test_a_nan_is_not_chosen_and_leads_nowhere(vocabulary: int) -> None:
    """A broken hidden state must not become an id outside of the vocabulary, which the next step would look up."""
    torch.manual_seed(2)
    states, weight, d2t = tensors(2, 40, vocabulary, torch.float32)
    expected = api.draft_tokens(states, weight, d2t)
    states[0] = torch.nan
    assert api.draft_tokens(states, weight, d2t).tolist() == [int(d2t[0]), int(expected[1])]


def test_compiled_code_calls_it_whole() -> None:
    torch.manual_seed(3)
    compiled = torch.compile(api.draft_tokens, fullgraph=True, backend="eager", dynamic=True)
    for tokens in (2, 5):
        states, weight, d2t = tensors(tokens, 64, 300, torch.float32)
        ids = torch.full((tokens,), -7, dtype=torch.int32)
        drafts = compiled(states, weight, d2t, ids)
        assert torch.equal(drafts, api.draft_tokens(states, weight, d2t))
        assert torch.equal(ids.long(), drafts)


@pytest.mark.parametrize("tokens", [1, 3])
def test_the_operator_is_what_it_tells_torch(tokens: int) -> None:
    states, weight, d2t = tensors(tokens, 16, 130, torch.float32)
    ids = torch.zeros(tokens, dtype=torch.int32)
    operator = torch.ops.aerie.draft_head.default
    torch.library.opcheck(operator, (states, weight, d2t, ids))
    torch.library.opcheck(operator, (states, weight, None, None))


def test_what_does_not_fit_is_refused() -> None:
    states, weight, d2t = tensors(3, 40, 130, torch.float32)
    with pytest.raises(ValueError, match="must have 40 columns"):
        api.draft_tokens(states, weight[:, :39])
    with pytest.raises(ValueError, match="each of its 130 rows"):
        api.draft_tokens(states, weight, d2t[:129])
    with pytest.raises(ValueError, match="room for 3 next ids"):
        api.draft_tokens(states, weight, d2t, torch.zeros(2, dtype=torch.int32))
    with pytest.raises(TypeError, match="one dtype"):
        api.draft_tokens(states.half(), weight)
    with pytest.raises(ValueError, match="contiguous"):
        api.draft_tokens(states, weight.T.contiguous().T)
