# SPDX-License-Identifier: Apache-2.0
"""Gated attention against its float64 reference, on whichever route this process takes: torch's operators on a CPU,
Triton's kernels on a GPU and, called by test_draft_step_interpreted.py, in Triton's interpreter.
"""

import pytest
import torch

from aerie.kernels.attention_gate import api, reference
from aerie.kernels.route import interpreted

TOKENS = [1, 3, 17]
INPUTS = [8, 200, 520]
# Gates and channels: one gate a channel, one a head of 20 or of 64, and a single head.
SHAPES = [(1, 1), (70, 70), (3, 60), (4, 256), (1, 64)]
# ||error|| / ||reference||: Triton rounds once; torch's operators round the product, the sigmoid and the result.
TOLERANCE = {torch.float32: 1e-6, torch.float16: 1e-3, torch.bfloat16: 8e-3}
DTYPES = [pytest.param(dtype, id=str(dtype)) for dtype in TOLERANCE if not (interpreted() and dtype == torch.bfloat16)]
NO_GPU = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")


def tensors(
    tokens: int, inner: int, gates: int, channels: int, dtype: torch.dtype, device: str = "cpu"
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """x, weight and attended; gates are spread over (0, 1), and none is the same for two tokens."""
    x, weight = torch.randn(tokens, inner), torch.randn(gates, inner) * 2 / inner**0.5
    return x.to(device, dtype), weight.to(device, dtype), torch.randn(tokens, channels).to(device, dtype)


def relative_error(found: torch.Tensor, expected: torch.Tensor) -> float:
    return float((found.double() - expected).norm() / expected.norm())


def check(tokens: int, inner: int, gates: int, channels: int, dtype: torch.dtype, device: str) -> None:
    torch.manual_seed(tokens + inner + gates)
    x, weight, attended = tensors(tokens, inner, gates, channels, dtype, device)
    gated = api.gate_attention(x, weight, attended)
    assert (gated.dtype, gated.shape, gated.is_contiguous()) == (dtype, (tokens, channels), True)
    assert relative_error(gated, reference.gate_attention(x, weight, attended)) < TOLERANCE[dtype]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("gates", "channels"), SHAPES)
@pytest.mark.parametrize("inner", INPUTS)
@pytest.mark.parametrize("tokens", TOKENS)
def test_gate_equals_reference(tokens: int, inner: int, gates: int, channels: int, dtype: torch.dtype) -> None:
    check(tokens, inner, gates, channels, dtype, "cpu")


@pytest.mark.parametrize(("gates", "channels"), [(70, 70), (4, 256)])
def test_a_prompt_s_tokens_are_gated_too(gates: int, channels: int) -> None:
    """More tokens than a tile: on a GPU cuBLAS takes over, in the interpreter the kernel goes on in blocks."""
    check(api.MOST_TOKENS + 7, 96, gates, channels, torch.float32, "cpu")


@NO_GPU
@pytest.mark.gpu
@pytest.mark.parametrize("dtype", DTYPES)
def test_on_a_gpu(dtype: torch.dtype) -> None:
    for tokens in (*TOKENS, 64, api.MOST_TOKENS + 7):
        for inner, gates, channels in ((520, 70, 70), (520, 3, 60), (8192, 4096, 4096), (8192, 32, 4096)):
            check(tokens, inner, gates, channels, dtype, "cuda")


@pytest.mark.parametrize(("gates", "channels"), [(40, 40), (2, 40)])
def test_rows_may_lie_apart(gates: int, channels: int) -> None:
    """x and attended as parts of wider tensors whose other columns are NaN: none is read."""
    torch.manual_seed(1)
    x, weight, attended = tensors(3, 200, gates, channels, torch.float32)
    wide_x, wide_attended = torch.full((3, 300), torch.nan), torch.full((3, 99), torch.nan)
    wide_x[:, 7:207], wide_attended[:, :40] = x, attended
    apart = api.gate_attention(wide_x[:, 7:207], weight, wide_attended[:, :40])
    assert apart.is_contiguous()
    torch.testing.assert_close(apart, api.gate_attention(x, weight, attended), rtol=1e-6, atol=1e-6)


# exp(1000) is infinite and its gate 0, which is right; NumPy, the interpreter's arithmetic, remarks on it.
@pytest.mark.filterwarnings("ignore:overflow encountered in exp:RuntimeWarning")
@pytest.mark.parametrize(("gates", "channels"), [(40, 40), (2, 40)])
def test_far_logits_open_and_close_the_gate(gates: int, channels: int) -> None:
    attended = torch.randn(2, channels)
    x = torch.tensor([[1000.0] * 8, [-1000.0] * 8])
    gated = api.gate_attention(x, torch.ones(gates, 8), attended)
    assert torch.equal(gated[0], attended[0])
    assert not gated[1].any()


@pytest.mark.parametrize(("gates", "channels"), [(40, 40), (2, 40)])
def test_no_tokens_are_no_error(gates: int, channels: int) -> None:
    x, weight, attended = tensors(1, 16, gates, channels, torch.float32)
    assert api.gate_attention(x[:0], weight, attended[:0]).shape == (0, channels)


@pytest.mark.parametrize(("gates", "channels"), [(40, 40), (2, 40)])
def test_compiled_code_calls_it_whole(gates: int, channels: int) -> None:
    torch.manual_seed(2)
    compiled = torch.compile(api.gate_attention, fullgraph=True, backend="eager", dynamic=True)
    for tokens in (2, 5):
        arguments = tensors(tokens, 96, gates, channels, torch.float32)
        assert torch.equal(compiled(*arguments), api.gate_attention(*arguments))


@pytest.mark.parametrize(("gates", "channels"), [(40, 40), (2, 40)])
@pytest.mark.parametrize("tokens", [1, 3])
def test_the_operator_is_what_it_tells_torch(tokens: int, gates: int, channels: int) -> None:
    x, weight, attended = tensors(tokens, 16, gates, channels, torch.float32)
    torch.library.opcheck(torch.ops.aerie.attention_gate.default, (x, weight, attended))
    wide = torch.randn(tokens, channels + 9)[:, :channels]
    torch.library.opcheck(torch.ops.aerie.attention_gate.default, (x, weight, wide))


def test_what_does_not_fit_is_refused() -> None:
    x, weight, attended = tensors(3, 16, 4, 40, torch.float32)
    with pytest.raises(ValueError, match="D a multiple of G"):
        api.gate_attention(x, weight[:3], attended)
    with pytest.raises(ValueError, match=r"\[3, 15\]"):
        api.gate_attention(x[:, :15], weight, attended)
    with pytest.raises(ValueError, match=r"\[2, 16\]"):
        api.gate_attention(x[:2], weight, attended)
    with pytest.raises(TypeError, match="one dtype"):
        api.gate_attention(x.half(), weight, attended)
    with pytest.raises(ValueError, match="without gaps"):
        api.gate_attention(x, weight.T.contiguous().T, attended)
