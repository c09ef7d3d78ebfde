# SPDX-License-Identifier: Apache-2.0
"""A decoder-only transformer whose layers are in memory one at a time, to run calibration text through it.

transformers 5 fuses experts into 3-D parameters; here each expert is three linear layers under the names that
checkpoints use, as every one is quantised by itself.

Shape suffixes: D documents, L tokens, H hidden size, E experts, T tokens of several documents.
"""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from aerie.quant.ends import Ends
from aerie.quant.errors import QuantError
from aerie.quant.stream import Checkpoint

WITHOUT_TEXT = "use method: rtn without calibration"
BATCH_TOKENS = 8192
"""Tokens that pass a layer at a time."""


class Expert(nn.Module):
    """SwiGLU of one expert."""

    def __init__(self, hidden: int, inner: int, act_fn: nn.Module) -> None:
        super().__init__()
        self.gate_proj = nn.Linear(hidden, inner, bias=False)
        self.up_proj = nn.Linear(hidden, inner, bias=False)
        self.down_proj = nn.Linear(inner, hidden, bias=False)
        self.act_fn = act_fn

    def forward(self, x: Tensor) -> Tensor:
        """[T, H] to [T, H]."""
        return self.down_proj(self.act_fn(self.gate_proj(x)) * self.up_proj(x))  # type: ignore[no-any-return]


class Experts(nn.Module):
    """A router and experts as linear layers: the arithmetic of transformers' Qwen3MoeSparseMoeBlock."""

    def __init__(self, block: nn.Module) -> None:
        super().__init__()
        fused: Any = block.experts
        self.gate: Any = block.gate
        self.experts = nn.ModuleList(
            Expert(fused.hidden_dim, fused.intermediate_dim, fused.act_fn) for _ in range(fused.num_experts)
        )

    def forward(self, hidden_states: Tensor) -> Tensor:
        """[..., H] to [..., H]."""
        x_TH = hidden_states.reshape(-1, hidden_states.shape[-1])
        _, weights, chosen = self.gate(x_TH)
        out_TH = torch.zeros_like(x_TH)
        for index, expert in enumerate(self.experts):
            token, place = torch.where(chosen == index)
            if len(token):
                out_TH = out_TH.index_add(0, token, expert(x_TH[token]) * weights[token, place, None])
        return out_TH.view_as(hidden_states)

    def affinity(self, x_TH: Tensor) -> Tensor:
        """Router's probability of each expert, chosen or not, [T, E]."""
        logits_TE, _, _ = self.gate(x_TH)
        return logits_TE.float().softmax(-1)  # type: ignore[no-any-return]

    def counts(self, x_TH: Tensor) -> Tensor:
        """Tokens routed to each expert, [E]."""
        _, _, chosen = self.gate(x_TH)
        return torch.bincount(chosen.flatten(), minlength=len(self.experts))


class Skeleton:
    """A checkpoint's architecture, without weights but for the layer that is asked for.

    Raises:
        QuantError: transformers does not know it, or it is not made as Llama and Qwen3 are.
    """

    def __init__(self, source: Checkpoint, device: torch.device) -> None:
        from transformers import AutoConfig, AutoModelForCausalLM

        self._source, self.device = source, device
        factory: Any = AutoModelForCausalLM  # its methods carry no types
        self.config: Any = AutoConfig.from_pretrained(source.directory)
        self.config._attn_implementation = "sdpa"
        try:
            with torch.device("meta"):
                self._model = factory.from_config(self.config)
        except ValueError as error:
            raise QuantError(f"MODEL: config.json: {error}") from error
        base = self._model.model
        if not all(hasattr(base, part) for part in ("embed_tokens", "layers", "norm", "rotary_emb")):
            raise QuantError(f"MODEL: {type(base).__name__} has no decoder layers under model.layers; {WITHOUT_TEXT}")
        kinds = set(getattr(self.config, "layer_types", None) or ()) - {"full_attention"}
        if kinds:
            raise QuantError(f"MODEL: layers of {', '.join(sorted(kinds))} cannot read text here; {WITHOUT_TEXT}")
        self._kinds: list[Any] = [type(layer) for layer in base.layers]
        self._rotary = type(base.rotary_emb)(config=self.config).to(device)
        self._where = frozenset(source.stored)
        self.ends = Ends(self._model, type(base.rotary_emb)(config=self.config), source)

    def __len__(self) -> int:
        return len(self._kinds)

    def kind(self, index: int) -> str:
        """Name of a layer's class."""
        return str(self._kinds[index].__name__)

    def prefix(self, index: int) -> str:
        """Of a layer's tensors."""
        return f"model.layers.{index}."

    def load(self, name: str) -> Tensor:
        """A tensor of the checkpoint in float32, by its full name."""
        return self._source.load(name).to(self.device, torch.float32)

    def layer(self, index: int) -> nn.Module:
        """Decoder layer `index` in float32, ready to run."""
        prefix = self.prefix(index)
        names = [name for name in self._where if name.startswith(prefix)]
        with torch.device("meta"):
            layer: nn.Module = self._kinds[index](self.config, index)
            if hasattr(layer.mlp, "experts"):
                moe: Any = layer.mlp
                layer.mlp = Experts(moe)
        # One after another, as the layer's 16 bits need not be in memory beside its 32; and into one block, which goes
        # back to the system when it is freed, whereas smaller ones leave holes.
        block = torch.empty(sum(self._source.stored[name].count for name in names), device=self.device)
        state: dict[str, Tensor] = {}
        for name in names:
            stored = self._source.stored[name]
            part, block = block[: stored.count], block[stored.count :]
            state[name.removeprefix(prefix)] = part.view(stored.shape).copy_(self._source.load(name))
        try:
            layer.load_state_dict(state, strict=True, assign=True)
        except RuntimeError as error:
            raise QuantError(
                f"MODEL: layer {index} does not hold the tensors of {type(layer).__name__}: {error}"
            ) from error
        layer.requires_grad_(False)
        layer.train(False)
        return layer

    def positions(self, length: int) -> dict[str, Any]:
        """What a layer takes beside its states: all documents start at position 0, attention is causal."""
        position_ids = torch.arange(length, device=self.device)[None]
        dummy = torch.empty(0, device=self.device)
        return {"position_embeddings": self._rotary(dummy, position_ids), "position_ids": position_ids}

    def run(self, layer: nn.Module, states_DLH: Tensor) -> Tensor:
        """What a layer makes of all documents, [D, L, H]."""
        out = torch.empty_like(states_DLH)
        with torch.no_grad():
            for part in batches(states_DLH):
                out[part] = layer(states_DLH[part].to(self.device), **self.positions(states_DLH.shape[1])).cpu()
        return out


def batches(states_DLH: Tensor) -> Iterator[slice]:
    """Documents that pass a layer together."""
    documents, length, _ = states_DLH.shape
    size = max(1, BATCH_TOKENS // length)
    return (slice(first, min(first + size, documents)) for first in range(0, documents, size))
