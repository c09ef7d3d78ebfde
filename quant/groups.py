# SPDX-License-Identifier: Apache-2.0
"""Which linear layers of a decoder layer read the same values, and what makes those: Llama, Qwen3, Qwen3-MoE.

Shape suffixes: T tokens, K inputs of a linear layer, H hidden size, E experts.
"""

from collections.abc import Generator
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PretrainedConfig

from aerie.quant.errors import QuantError
from aerie.quant.methods.awq import Group, Inputs
from aerie.quant.skeleton import Experts, Skeleton, batches

READERS = ("self_attn.q_proj", "self_attn.o_proj", "mlp")
"""Modules whose inputs are all that a linear layer reads, those inside the MLP apart."""


def seen(skeleton: Skeleton, layer: nn.Module, states_DLH: Tensor, counts_DL: Tensor) -> dict[str, Tensor]:
    """What the modules named in READERS read, [T, K], of the tokens that count.

    Raises:
        QuantError: the layer is made in another way.
    """
    modules = dict(layer.named_modules())
    if unknown := [name for name in READERS if name not in modules]:
        raise QuantError(f"recipe option method: a decoder layer without {unknown[0]} can only take method: rtn")
    found: dict[str, list[Tensor]] = {name: [] for name in READERS}
    positions = skeleton.positions(states_DLH.shape[1])
    for part in batches(states_DLH):
        counts = counts_DL[part].to(skeleton.device)

        keep = partial(_keep, counts)
        handles = [modules[name].register_forward_pre_hook(partial(keep, found[name])) for name in READERS]
        try:
            with torch.no_grad():
                layer(states_DLH[part].to(skeleton.device), **positions)
        finally:
            for handle in handles:
                handle.remove()
    return {name: torch.cat(parts) for name, parts in found.items()}


def _keep(counts_DL: Tensor, found: list[Tensor], module: nn.Module, args: tuple[Tensor, ...]) -> None:
    found.append(args[0][counts_DL].cpu())


Groups = Generator[Group, Tensor, None]
"""Yields a group and is sent its s, or 1 everywhere."""


def groups(layer: nn.Module, read: dict[str, Tensor], config: PretrainedConfig, device: torch.device) -> Groups:
    """The groups of a layer, in an order in which each may be scaled before the next is asked for."""
    made: Any = layer  # as Llama's and Qwen3's are: `seen` has looked
    attention = made.self_attn
    projections = [attention.q_proj, attention.k_proj, attention.v_proj]
    yield _after_norm(getattr(made, "input_layernorm", None), [projections], read["self_attn.q_proj"].to(device))
    yield _after_values(attention, read["self_attn.o_proj"].to(device), config)
    parts = _experts if isinstance(made.mlp, Experts) else _dense
    norm = getattr(made, "pre_feedforward_layernorm", made.post_attention_layernorm)
    yield from parts(made.mlp, norm, read["mlp"].to(device))


def _after_norm(norm: nn.Module | None, linears: list[list[nn.Linear]], x_TH: Tensor) -> Group:
    inputs = Inputs(x_TH)
    return Group(linears, lambda _: inputs, inputs.magnitude(), lambda s_K: _divide(norm, s_K))


def _after_values(attention: nn.Module, x_TK: Tensor, config: PretrainedConfig) -> Group:
    """Attention's outputs are mixtures of values: a channel of a value head scales that of all its query heads."""
    made: Any = attention
    size = made.head_dim
    heads = config.num_attention_heads // config.num_key_value_heads
    inputs = Inputs(x_TK)

    def fold(s_K: Tensor) -> None:
        _divide_rows(made.v_proj, s_K.view(-1, heads, size)[:, 0].flatten())

    return Group([[made.o_proj]], lambda _: inputs, inputs.magnitude(), fold, (heads, size))


def _dense(mlp: nn.Module, norm: nn.Module | None, x_TH: Tensor) -> Groups:
    made: Any = mlp
    s_K = yield _after_norm(norm, [[made.gate_proj, made.up_proj]], x_TH)
    yield _down(mlp, x_TH / s_K, None)


def _experts(mlp: Experts, norm: nn.Module | None, x_TH: Tensor) -> Groups:
    """One s for the inputs of all experts, as they read the same norm; then one for each expert's inside."""
    affinity_TE = mlp.affinity(x_TH)
    experts: list[Any] = list(mlp.experts)

    def fold(s_K: Tensor) -> None:
        _divide(norm, s_K)
        mlp.gate.weight.mul_(s_K)

    s_K = yield Group(
        [[expert.gate_proj, expert.up_proj] for expert in experts],
        lambda index: Inputs(x_TH, affinity_TE[:, index]),
        Inputs(x_TH).magnitude(),
        fold,
    )
    scaled_TH = x_TH / s_K
    for index, expert in enumerate(experts):
        yield _down(expert, scaled_TH, affinity_TE[:, index])


def _down(mlp: nn.Module, x_TH: Tensor, weight_T: Tensor | None) -> Group:
    """The inside of a SwiGLU; the rows of its up projection can take a scale."""
    made: Any = mlp
    with torch.no_grad():
        inputs = Inputs(made.act_fn(made.gate_proj(x_TH)) * made.up_proj(x_TH), weight_T)
    return Group([[made.down_proj]], lambda _: inputs, inputs.magnitude(), lambda s_K: _divide_rows(made.up_proj, s_K))


def _divide(norm: nn.Module | None, s_K: Tensor) -> None:
    """Divide a norm's outputs: `(a + w) x + b`, where a is 0, or 1 in Gemma's; `folds.check` proves it of a layer."""
    if norm is None:
        raise QuantError("recipe option method: awq needs a norm before attention; set method: autoround or rtn")
    made: Any = norm
    probe = torch.arange(1.0, len(s_K) + 1, device=s_K.device)[None]
    weight, bias = made.weight.clone(), getattr(made, "bias", None)
    at_zero, at_one = (_normed(norm, probe, value) for value in (0.0, 1.0))
    made.weight.copy_(weight)
    slope = at_one - at_zero
    without_bias = at_zero if bias is None else at_zero - bias
    base = ((without_bias * slope).sum() / slope.square().sum()).round()
    made.weight.add_(base).div_(s_K).sub_(base)
    if bias is not None:
        bias.div_(s_K)


def _normed(norm: nn.Module, probe: Tensor, value: float) -> Tensor:
    made: Any = norm
    made.weight.fill_(value)
    found: Tensor = norm(probe)
    return found


def _divide_rows(linear: nn.Linear, s_N: Tensor) -> None:
    linear.weight.div_(s_N[:, None])
    if linear.bias is not None:
        linear.bias.div_(s_N)
