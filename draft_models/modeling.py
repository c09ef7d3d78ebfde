# SPDX-License-Identifier: Apache-2.0
"""The Eagle-3 head in plain PyTorch: for training, and the reference that the served head is compared with.

The formula is in contract.py; the operations and their order are those of vLLM 0.32's `llama_eagle3.py`, and with
Qwen3's attention those of its `qwen3_eagle3.py`. Parameters and buffers carry the checkpoint's names, so
`state_dict()` is the checkpoint.

Position i of the head receives the target's fused hidden state of token i and the embedding of token i + 1, and
predicts token i + 2. At step s of a chain it receives its own output of step s - 1 and the embedding of token
i + 1 + s, stands at rotary position i + s, and predicts token i + 2 + s.

Shapes: B documents, L tokens, R rows that draft, S steps, A aux states, H hidden, D head size, N query heads,
G key-value heads, V draft vocabulary, W target vocabulary.
"""

from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from aerie.draft_models.contract import DraftConfig
from aerie.draft_models.joint_attention import Mask, causal_mask, joint_attention


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotary embedding in the halves layout, over the last dimension."""
    first, second = x.chunk(2, dim=-1)
    return torch.cat([first * cos - second * sin, second * cos + first * sin], dim=-1)


class Attention(nn.Module):
    """Projections of the gated attention, [2H] in; the attention itself is the caller's."""

    def __init__(self, config: DraftConfig) -> None:
        super().__init__()
        wide = 2 * config.hidden_size
        q_size, kv_size = (n * config.head_dim for n in (config.num_attention_heads, config.num_key_value_heads))
        self.q_proj = nn.Linear(wide, q_size, bias=False)
        self.k_proj = nn.Linear(wide, kv_size, bias=False)
        self.v_proj = nn.Linear(wide, kv_size, bias=False)
        self.o_proj = nn.Linear(q_size, config.hidden_size, bias=False)
        self.g_proj = nn.Linear(wide, config.gate_size, bias=False) if config.gate != "none" else None
        self.q_norm = nn.RMSNorm(config.head_dim, eps=config.rms_norm_eps) if config.qk_norm else None
        self.k_norm = nn.RMSNorm(config.head_dim, eps=config.rms_norm_eps) if config.qk_norm else None

    def query_weights(self) -> Tensor:
        """[q + k + v + g, 2H]: what every row that drafts is projected with."""
        gate = [self.g_proj.weight] if self.g_proj is not None else []
        return torch.cat([self.q_proj.weight, self.k_proj.weight, self.v_proj.weight, *gate])


class MLP(nn.Module):
    """SwiGLU."""

    def __init__(self, hidden_size: int, intermediate_size: int) -> None:
        super().__init__()
        self.gate_proj = nn.Linear(hidden_size, intermediate_size, bias=False)
        self.up_proj = nn.Linear(hidden_size, intermediate_size, bias=False)
        self.down_proj = nn.Linear(intermediate_size, hidden_size, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Same shape out as in."""
        return self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))  # type: ignore[no-any-return]  # nn.Module


class MidLayer(nn.Module):
    """The head's one decoder layer."""

    def __init__(self, config: DraftConfig) -> None:
        super().__init__()
        self.input_layernorm = nn.RMSNorm(config.hidden_size, eps=config.rms_norm_eps)
        self.hidden_norm = nn.RMSNorm(config.hidden_size, eps=config.rms_norm_eps)
        self.self_attn = Attention(config)
        self.post_attention_layernorm = nn.RMSNorm(config.hidden_size, eps=config.rms_norm_eps)
        self.mlp = MLP(config.hidden_size, config.intermediate_size)


@dataclass
class Unrolled:
    """What the steps of a training-time test over one batch share, and the keys they leave behind."""

    keys_BGLD: Tensor
    values_BGLD: Tensor
    mask: Mask
    """What each row sees of step 0's keys."""
    positions_BR: Tensor
    embedded_BRW: Tensor
    """The embeddings' share of every row's projections, with one row more per step; step s reads it from row s on."""
    weights_WH: Tensor
    """The projections' share for the hidden state."""
    step_keys: list[Tensor] = field(default_factory=list)
    step_values: list[Tensor] = field(default_factory=list)


class Eagle3Head(nn.Module):
    """The head; token embeddings are the target's and frozen, hence not in `state_dict()`."""

    d2t: Tensor
    t2d: Tensor
    embed_WH: Tensor
    cos_PD: Tensor
    sin_PD: Tensor

    def __init__(self, config: DraftConfig, embed_weight: Tensor) -> None:
        super().__init__()
        self.config = config
        hidden, aux = config.hidden_size, len(config.aux_hidden_state_layer_ids)
        self.fc = nn.Linear(aux * config.target_hidden_size, hidden, bias=False)
        self.fc_norm = (
            nn.ModuleList(nn.RMSNorm(config.target_hidden_size, eps=config.rms_norm_eps) for _ in range(aux))
            if config.fc_norm
            else None
        )
        self.midlayer = MidLayer(config)
        self.norm = nn.RMSNorm(hidden, eps=config.rms_norm_eps)
        self.lm_head = nn.Linear(hidden, config.draft_vocab_size, bias=False)
        if config.maps_vocabulary:
            self.register_buffer("d2t", torch.zeros(config.draft_vocab_size, dtype=torch.int64))
            self.register_buffer("t2d", torch.zeros(config.vocab_size, dtype=torch.bool))
        self.register_buffer("embed_WH", embed_weight.detach(), persistent=False)
        frequencies = config.rope_theta ** -(torch.arange(0, config.head_dim, 2, dtype=torch.float64) / config.head_dim)
        # A chain may run past the last position by its own length.
        angles = torch.arange(config.max_position_embeddings + 128, dtype=torch.float64)[:, None] * frequencies
        self.register_buffer("cos_PD", angles.cos().float(), persistent=False)
        self.register_buffer("sin_PD", angles.sin().float(), persistent=False)

    @property
    def target_ids_V(self) -> Tensor:  # noqa: N802 -- shape suffix
        """The target's token id of every draft id."""
        identity = torch.arange(self.config.draft_vocab_size, device=self.embed_WH.device)
        return identity + self.d2t if self.config.maps_vocabulary else identity

    def fuse(self, aux_BLA: Tensor) -> Tensor:
        """Hidden states for step 0, [..., H], from the concatenated aux states, [..., A * H]."""
        if self.fc_norm is not None:
            chunks = aux_BLA.chunk(len(self.fc_norm), dim=-1)
            aux_BLA = torch.cat([norm(chunk) for norm, chunk in zip(self.fc_norm, chunks, strict=True)], dim=-1)
        hidden: Tensor = self.fc(aux_BLA)
        # Under autocast a product is bf16; the residual stream and the attention stay in the aux states' type.
        return hidden.to(aux_BLA.dtype)

    def logits(self, normed_BRH: Tensor) -> Tensor:
        """Logits over the draft vocabulary from the first output of `step` or `forward`."""
        return self.lm_head(normed_BRH)  # type: ignore[no-any-return]  # nn.Module.__call__ is untyped

    def forward(self, next_ids_BL: Tensor, hidden_BLH: Tensor) -> tuple[Tensor, Tensor]:
        """Every position of whole sequences with ordinary causal attention: (normed, hidden for the next step).

        `next_ids_BL[:, i]` is token i + 1, as the engine shifts them.
        """
        attention, config = self.midlayer.self_attn, self.config
        x_BL2H, residual = self._inputs(next_ids_BL, hidden_BLH)
        length = next_ids_BL.shape[1]
        cos, sin = self.cos_PD[:length, None], self.sin_PD[:length, None]
        q = self._placed(attention.q_proj(x_BL2H), attention.q_norm, cos, sin).transpose(1, 2)
        k = self._placed(attention.k_proj(x_BL2H), attention.k_norm, cos, sin).transpose(1, 2)
        v = self._heads(attention.v_proj(x_BL2H)).transpose(1, 2)
        group = config.num_attention_heads // config.num_key_value_heads
        k, v = k.repeat_interleave(group, dim=1), v.repeat_interleave(group, dim=1)
        out = F.scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2)
        gate = None if attention.g_proj is None else attention.g_proj(x_BL2H)
        return self._finish(out, gate, residual)

    @torch.no_grad()
    def chain(self, next_ids_L: Tensor, aux_LA: Tensor, steps: int) -> tuple[Tensor, Tensor]:
        """Draft greedily after one sequence, as the engine does: (target ids [S], logits [S, V])."""
        ids, hidden = next_ids_L[None], self.fuse(aux_LA[None])
        drafted, logits_SV = [], []
        for _ in range(steps):
            normed, following = self.forward(ids, hidden)
            logits_SV.append(self.logits(normed[0, -1]))
            drafted.append(self.target_ids_V[logits_SV[-1].argmax()])
            ids = torch.cat([ids, drafted[-1].reshape(1, 1)], dim=1)
            hidden = torch.cat([hidden, following[:, -1:]], dim=1)
        return torch.stack(drafted), torch.stack(logits_SV)

    def unroll(self, next_ids_BL: Tensor, hidden_BLH: Tensor, rows_BR: Tensor, steps: int) -> Unrolled:
        """Prepare a training-time test of `steps` steps for the positions `rows_BR`.

        Positions outside the rows only give step 0's keys and values. The rows must be in ascending order; where a
        document's next row is not the next position, later steps of it are not a chain and the caller masks them.
        """
        attention, layer = self.midlayer.self_attn, self.midlayer
        x_BL2H, _ = self._inputs(next_ids_BL, hidden_BLH)
        length, config = next_ids_BL.shape[1], self.config
        cos, sin = self.cos_PD[:length, None], self.sin_PD[:length, None]
        keys = self._placed(attention.k_proj(x_BL2H), attention.k_norm, cos, sin).transpose(1, 2)
        values = self._heads(attention.v_proj(x_BL2H)).to(cos.dtype).transpose(1, 2)
        group = config.num_attention_heads // config.num_key_value_heads
        weights = attention.query_weights()
        embedded = layer.input_layernorm(F.embedding(next_ids_BL.gather(1, rows_BR), self.embed_WH))
        embedded_BRW = F.linear(embedded, weights[:, : config.hidden_size])
        return Unrolled(
            keys_BGLD=keys,
            values_BGLD=values,
            mask=causal_mask(rows_BR, length, group, keys.dtype),
            positions_BR=rows_BR,
            embedded_BRW=F.pad(embedded_BRW, (0, 0, 0, steps)),
            weights_WH=weights[:, config.hidden_size :].contiguous(),
        )

    def step(self, s: int, hidden_BRH: Tensor, state: Unrolled) -> tuple[Tensor, Tensor]:
        """Step `s` of the training-time test, to be called for s = 0, 1, ...: (normed, hidden for step s + 1)."""
        config, layer, attention = self.config, self.midlayer, self.midlayer.self_attn
        batch, rows, _ = hidden_BRH.shape
        normed = layer.hidden_norm(hidden_BRH)
        residual = normed if config.norm_before_residual else hidden_BRH
        projected = F.linear(normed, state.weights_WH) + state.embedded_BRW[:, s : s + rows]
        q_size, kv_size = (n * config.head_dim for n in (config.num_attention_heads, config.num_key_value_heads))
        q, k, v, gate = projected.split([q_size, kv_size, kv_size, config.gate_size], dim=-1)
        cos, sin = (table[state.positions_BR + s].unsqueeze(2) for table in (self.cos_PD, self.sin_PD))
        if s > 0:
            state.step_keys.append(self._diagonal(self._placed(k, attention.k_norm, cos, sin)))
            state.step_values.append(self._diagonal(self._heads(v).to(cos.dtype)))
        q_BGRD = self._grouped(self._placed(q, attention.q_norm, cos, sin))
        empty = q_BGRD.unsqueeze(-2)[..., :0, :]
        out = joint_attention(
            q_BGRD,
            state.keys_BGLD,
            state.values_BGLD,
            torch.stack(state.step_keys, dim=-2) if s else empty,
            torch.stack(state.step_values, dim=-2) if s else empty,
            state.mask,
        )
        out = out.unflatten(2, (-1, rows)).permute(0, 3, 1, 2, 4).reshape(batch, rows, -1, config.head_dim)
        return self._finish(out, gate if config.gate != "none" else None, residual)

    def _inputs(self, next_ids_BL: Tensor, hidden_BLH: Tensor) -> tuple[Tensor, Tensor]:
        normed = self.midlayer.hidden_norm(hidden_BLH)
        embedded = self.midlayer.input_layernorm(F.embedding(next_ids_BL, self.embed_WH))
        residual = normed if self.config.norm_before_residual else hidden_BLH
        return torch.cat([embedded, normed], dim=-1), residual

    def _heads(self, x: Tensor) -> Tensor:
        heads: Tensor = x.unflatten(-1, (-1, self.config.head_dim))
        return heads

    def _placed(self, x: Tensor, norm: nn.RMSNorm | None, cos: Tensor, sin: Tensor) -> Tensor:
        """Queries or keys [..., N * D] to heads [..., N, D] at their positions; Qwen3's are normalised first."""
        heads = self._heads(x)
        # Under autocast a projection is bf16; the norm is computed as the attention is, like vLLM's in float32.
        return rotate(heads if norm is None else norm(heads.to(cos.dtype)), cos, sin)

    def _grouped(self, x_BRND: Tensor) -> Tensor:
        """[B, R, N, D] to [B, G, N / G * R, D]."""
        grouped: Tensor = x_BRND.unflatten(2, (self.config.num_key_value_heads, -1))
        return grouped.permute(0, 2, 3, 1, 4).flatten(2, 3)

    def _diagonal(self, x_BRGD: Tensor) -> Tensor:
        """[B, R, G, D] to [B, G, N / G * R, D]: the same key for every query head of its group."""
        group = self.config.num_attention_heads // self.config.num_key_value_heads
        return x_BRGD.transpose(1, 2).repeat(1, 1, group, 1)

    def _finish(self, out_BRND: Tensor, gate: Tensor | None, residual: Tensor) -> tuple[Tensor, Tensor]:
        layer, config = self.midlayer, self.config
        if gate is not None:
            width = config.head_dim if config.gate == "elementwise" else 1
            out_BRND = out_BRND * torch.sigmoid(gate.unflatten(-1, (-1, width)))
        hidden = residual + layer.self_attn.o_proj(out_BRND.flatten(2))
        hidden = hidden + layer.mlp(layer.post_attention_layernorm(hidden))
        normed = self.norm(hidden)
        return normed, normed if config.norm_output else hidden
