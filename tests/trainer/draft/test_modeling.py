# SPDX-License-Identifier: Apache-2.0
"""The head's equations, and the training-time test against the chain that an engine would run."""

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from aerie.draft_models.contract import DraftConfig, GateKind, tensor_shapes
from aerie.draft_models.modeling import Eagle3Head, rotate

GATES: tuple[GateKind, ...] = ("elementwise", "headwise", "none")
OPTIONS: tuple[dict[str, object], ...] = (
    {},
    {"norm_before_residual": True},
    {"fc_norm": True, "norm_output": True},
    {"draft_vocab_size": 60},
    {"qk_norm": True},
)
LENGTH, STEPS = 11, 4
MakeConfig = Callable[..., DraftConfig]


def _head(config: DraftConfig, seed: int = 0) -> Eagle3Head:
    generator = torch.Generator().manual_seed(seed)
    head = Eagle3Head(config, torch.randn(config.vocab_size, config.hidden_size, generator=generator))
    with torch.no_grad():
        for parameter in head.parameters():
            parameter.normal_(std=0.2, generator=generator)
            if parameter.dim() == 1:
                parameter.add_(1)
    return head


def _sequence(config: DraftConfig) -> tuple[Tensor, Tensor]:
    """Next ids with room for the chains, and aux states."""
    generator = torch.Generator().manual_seed(1)
    next_ids = torch.randint(0, config.vocab_size, (LENGTH + STEPS,), generator=generator)
    width = len(config.aux_hidden_state_layer_ids) * config.target_hidden_size
    return next_ids, torch.randn(LENGTH + STEPS, width, generator=generator)


def _chain(head: Eagle3Head, next_ids_L: Tensor, aux_LA: Tensor, row: int) -> list[Tensor]:
    """Logits of a forced chain from one row: the sequence grows by the head's own output, attention is ordinary."""
    hidden, logits = head.fuse(aux_LA[None, : row + 1]), []
    for s in range(STEPS):
        normed, following = head(next_ids_L[None, : row + 1 + s], hidden)
        logits.append(head.logits(normed[0, -1]))
        hidden = torch.cat([hidden, following[:, -1:]], dim=1)
    return logits


@pytest.mark.parametrize("gate", GATES)
@pytest.mark.parametrize("options", OPTIONS)
def test_training_time_test_equals_the_engines_chain(
    tiny_config: MakeConfig, gate: GateKind, options: dict[str, object]
) -> None:
    head = _head(tiny_config(gate, **options))
    next_ids, aux = _sequence(head.config)
    rows = torch.arange(3, LENGTH)
    hidden_BLH = head.fuse(aux[None])
    state = head.unroll(next_ids[None], hidden_BLH, rows[None], STEPS)
    hidden, ours = hidden_BLH[:, rows], []
    for s in range(STEPS):
        normed, hidden = head.step(s, hidden, state)
        # The last s rows have no s-th successor.
        ours.append(head.logits(normed[0, : len(rows) - s]))
    chains = [_chain(head, next_ids, aux, int(row)) for row in rows]
    expected = [torch.stack([chain[s] for chain in chains[: len(rows) - s]]) for s in range(STEPS)]
    parameters = list(head.parameters())
    for s in range(STEPS):
        torch.testing.assert_close(ours[s], expected[s], atol=2e-5, rtol=2e-5)
    total = [sum(logits.square().mean() for logits in side) for side in (ours, expected)]
    gradients = [torch.autograd.grad(one, parameters) for one in total if isinstance(one, Tensor)]
    for mine, theirs in zip(*gradients, strict=True):
        torch.testing.assert_close(mine, theirs, atol=1e-5 * float(theirs.abs().max()) + 1e-7, rtol=1e-4)


@pytest.mark.parametrize("gate", GATES)
@pytest.mark.parametrize("qk_norm", [False, True])
def test_the_equations(tiny_config: MakeConfig, gate: GateKind, qk_norm: bool) -> None:
    config: DraftConfig = tiny_config(gate, qk_norm=qk_norm)
    head = _head(config)
    w: dict[str, Tensor] = {name: tensor.detach() for name, tensor in head.state_dict().items()}
    next_ids, aux = _sequence(config)

    def rms(x: Tensor, name: str) -> Tensor:
        return x / (x.square().mean(-1, keepdim=True) + config.rms_norm_eps).sqrt() * w[name]

    def heads(x: Tensor) -> Tensor:
        return x.view(len(next_ids), -1, config.head_dim).transpose(0, 1)

    hidden = aux @ w["fc.weight"].T
    embedded = head.embed_WH[next_ids]
    x = torch.cat([rms(embedded, "midlayer.input_layernorm.weight"), rms(hidden, "midlayer.hidden_norm.weight")], -1)
    q, k, v = (heads(x @ w[f"midlayer.self_attn.{name}_proj.weight"].T) for name in "qkv")
    if qk_norm:
        q, k = rms(q, "midlayer.self_attn.q_norm.weight"), rms(k, "midlayer.self_attn.k_norm.weight")
    cos, sin = head.cos_PD[: len(next_ids)], head.sin_PD[: len(next_ids)]
    k, v = k.repeat_interleave(2, 0), v.repeat_interleave(2, 0)
    scores = rotate(q, cos, sin) @ rotate(k, cos, sin).mT / config.head_dim**0.5
    scores = scores.masked_fill(torch.ones_like(scores).triu(1).bool(), float("-inf"))
    out = (scores.softmax(-1) @ v).transpose(0, 1)
    if gate != "none":
        g = torch.sigmoid(x @ w["midlayer.self_attn.g_proj.weight"].T)
        out = out * g.view(len(next_ids), config.num_attention_heads, -1)
    hidden = hidden + out.flatten(1) @ w["midlayer.self_attn.o_proj.weight"].T
    y = rms(hidden, "midlayer.post_attention_layernorm.weight")
    inner = F.silu(y @ w["midlayer.mlp.gate_proj.weight"].T) * (y @ w["midlayer.mlp.up_proj.weight"].T)
    hidden = hidden + inner @ w["midlayer.mlp.down_proj.weight"].T
    logits = rms(hidden, "norm.weight") @ w["lm_head.weight"].T

    normed, following = head(next_ids[None], head.fuse(aux[None]))
    torch.testing.assert_close(following[0], hidden, atol=2e-5, rtol=2e-5)
    torch.testing.assert_close(head.logits(normed)[0], logits, atol=2e-5, rtol=2e-5)


@pytest.mark.parametrize("gate", GATES)
@pytest.mark.parametrize("options", OPTIONS)
def test_the_state_dict_is_the_checkpoint(tiny_config: MakeConfig, gate: GateKind, options: dict[str, object]) -> None:
    config: DraftConfig = tiny_config(gate, **options)
    found = {name: tuple(tensor.shape) for name, tensor in _head(config).state_dict().items()}
    assert found == tensor_shapes(config)


def test_a_greedy_chain_feeds_itself(tiny_config: MakeConfig) -> None:
    head = _head(tiny_config())
    head.d2t.copy_(torch.arange(23) * 2 % 37)
    next_ids, aux = _sequence(head.config)
    drafted, logits = head.chain(next_ids[:5], aux[:5], STEPS)
    assert drafted.tolist() == head.target_ids_V[logits.argmax(-1)].tolist()
    forced = _chain(head, torch.cat([next_ids[:5], drafted]), aux, row=4)
    torch.testing.assert_close(logits, torch.stack(forced), atol=1e-5, rtol=1e-5)
