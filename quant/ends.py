# SPDX-License-Identifier: Apache-2.0
"""What a model does before its first layer and behind its last, by transformers' own forward pass.

Families scale embeddings (Gemma, Granite) and logits (Granite, Cohere), cap logits, and have norms of their own. So the
model itself runs, with a stand-in for its layers, some rows of its tables at a time: none is in memory as a whole.

Shape suffixes: D documents, L tokens, H hidden size, P predictions, V vocabulary, R rows of V.
"""

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from aerie.quant.stream import Checkpoint


class StandIn(nn.Module):
    """In place of all decoder layers: keeps what the first would read, and passes on what the last has made."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.attention_type = getattr(layer, "attention_type", "full_attention")
        self.read: Tensor | None = None
        self.made: Tensor | None = None

    def forward(self, hidden_states: Tensor, *arguments: object, **options: object) -> Tensor:
        """[D, L, H] to the same shape."""
        self.read = hidden_states
        return hidden_states if self.made is None else self.made


class Ends:
    """A causal language model of transformers without its layers."""

    def __init__(self, model: nn.Module, rotary: nn.Module, source: Checkpoint) -> None:
        self._model: Any = model  # built without memory; what the checkpoint holds replaces it here
        self._source = source
        base: Any = self._model.model
        self._stand_in = StandIn(base.layers[0])
        base.layers, base.rotary_emb = nn.ModuleList([self._stand_in]), rotary
        prefix = "model.norm."
        names = [name for name in source.stored if name.startswith(prefix)]
        weights = {name.removeprefix(prefix): tensor.float() for name, tensor in source.read(names).items()}
        base.norm.load_state_dict(weights, strict=True, assign=True)
        base.embed_tokens.padding_idx = None
        scale = getattr(base.embed_tokens, "scalar_embed_scale", None)
        if scale is not None:  # a tensor of Gemma's embeddings that no checkpoint holds
            base.embed_tokens.embed_scale = torch.tensor(scale)
        model.requires_grad_(False)
        model.train(False)

    @property
    def _is_tied(self) -> bool:
        return "lm_head.weight" not in self._source.stored

    def head(self) -> Tensor:
        """The output matrix [V, H] as it is stored, in its mapped file."""
        name = "model.embed_tokens.weight" if self._is_tied else "lm_head.weight"
        return self._source.read([name])[name]

    def embed(self, ids_DL: Tensor) -> Tensor:
        """What the first layer reads, float32 [D, L, H]."""
        (table,) = self._source.read(["model.embed_tokens.weight"]).values()
        used, place_DL = ids_DL.unique(return_inverse=True)
        base = self._model.model
        base.embed_tokens.weight = nn.Parameter(table[used].float(), requires_grad=False)
        self._stand_in.made = None
        with torch.no_grad():
            base(input_ids=place_DL, use_cache=False)
        assert self._stand_in.read is not None
        return self._stand_in.read

    def normed(self, states_PH: Tensor) -> Tensor:
        """What the output matrix reads, of the last layer's states."""
        with torch.no_grad():
            made: Tensor = self._model.model.norm(states_PH)
        return made

    def logits(self, states_PH: Tensor, head: Iterable[Tensor]) -> Tensor:
        """[P, V], of the last layer's states and an output matrix, float32 in parts [R, H]."""
        self._stand_in.made = states_PH[None]
        # What is embedded does not matter: the layers are left out.
        self._model.model.embed_tokens.weight = nn.Parameter(states_PH.new_zeros(1, states_PH.shape[1]), False)
        ids_1P = torch.zeros(1, len(states_PH), dtype=torch.long)
        bias_V = self._source.read(["lm_head.bias"])["lm_head.bias"] if "lm_head.bias" in self._source.stored else None
        parts, first = [], 0
        with torch.no_grad():
            for rows_RH in head:
                linear = nn.Linear(1, 1, bias=False)
                linear.weight = nn.Parameter(rows_RH, requires_grad=False)
                if bias_V is not None:
                    linear.bias = nn.Parameter(bias_V[first : first + len(rows_RH)].float(), requires_grad=False)
                self._model.lm_head = linear
                parts.append(self._model(input_ids=ids_1P, use_cache=False).logits[0])
                first += len(rows_RH)
        return torch.cat(parts, -1)
