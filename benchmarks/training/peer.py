# SPDX-License-Identifier: Apache-2.0
"""speculators' Eagle-3 with our head's weights. Read against speculators 0.9.0; imported in .venv-oracle only.

What differs, and how it is made equal by the data and not by tolerance:

* It drafts from every position of a row, a prompt's too, and masks by the position *predicted*; we draft from the
  answer's rows and demand that a chain stay in one answer. Where every token of a row's one document is supervised,
  both select the same: step s drops the first s rows.
* It learns the target's distribution wherever the mask says so; we leave out rows whose own choice cannot be drafted.
  Such rows are taken out of its mask.
* It reports KL, we report cross-entropy: they differ by the target's entropy, which has no gradient (`entropy`).
* Its positions start at 1, ours at 0. Rotary embeddings are relative.

Shapes: L tokens of a document, P positions of a packed row, A aux layers, H hidden size, V draft vocabulary.
"""

from dataclasses import dataclass

import torch
from speculators.losses import resolve_loss_config
from speculators.models.eagle3 import Eagle3DraftModel, Eagle3SpeculatorConfig, shift_batch
from speculators.train.data import CollateFn
from speculators.train.distributed_batch_sampler import MultipackDistributedBatchSamplerV2
from torch import Tensor
from transformers import LlamaConfig, Qwen3Config

from aerie.benchmarks.training.agreement import Solution
from aerie.benchmarks.training.problem import countable
from aerie.draft_models.modeling import Eagle3Head
from aerie.trainer.draft.shards import Document
from aerie.trainer.draft.target import Teacher

LOSS = resolve_loss_config("kl_div", "eager")
"""Its fused losses are Triton kernels, which a CPU cannot run."""
OURS, THEIRS = "midlayer.", "layers.0."


@dataclass(frozen=True)
class Row:
    """One packed row, as its collator makes it: what one forward pass receives."""

    batch: dict[str, Tensor]
    tokens: int
    """Tokens of documents in it; the rest is padding."""


def model_of(head: Eagle3Head, teacher: Teacher) -> Eagle3DraftModel:
    """Its model with the weights of our plain head; the output rows are trained, as ours are by default."""
    config = head.config
    if config.gate != "none":
        raise ValueError(f"gate {config.gate}: speculators has plain heads only")
    layer_class = Qwen3Config if getattr(config, "qk_norm", False) else LlamaConfig
    layer = layer_class(
        hidden_size=config.hidden_size,
        intermediate_size=config.intermediate_size,
        num_attention_heads=config.num_attention_heads,
        num_key_value_heads=config.num_key_value_heads,
        head_dim=config.head_dim,
        vocab_size=config.vocab_size,
        num_hidden_layers=1,
        rms_norm_eps=config.rms_norm_eps,
        rope_parameters={"rope_type": "default", "rope_theta": config.rope_theta},
        max_position_embeddings=config.max_position_embeddings,
    )
    # Flex attention, its default, has no backward pass on CPUs.
    layer._attn_implementation = "sdpa"
    model = Eagle3DraftModel(
        Eagle3SpeculatorConfig(
            transformer_layer_config=layer,
            draft_vocab_size=config.draft_vocab_size,
            norm_before_residual=config.norm_before_residual,
            fc_norm=config.fc_norm,
            norm_output=config.norm_output,
            eagle_aux_hidden_state_layer_ids=list(config.aux_hidden_state_layer_ids),
        )
    )
    tensors = {name.replace(OURS, THEIRS): tensor for name, tensor in head.state_dict().items()}
    tensors |= {
        "embed_tokens.weight": teacher.embed_WH,
        "verifier_norm.weight": teacher.norm_H,
        "verifier_lm_head.weight": teacher.head_WH[head.target_ids_V],
    }
    model.load_state_dict(tensors)
    model.lm_head.weight.requires_grad_(True)
    return model.train()


def sample(document: Document, mask_L: Tensor | None = None) -> dict[str, Tensor]:
    """What its dataset reads of a document; `mask_L` in place of the document's own supervision."""
    length = len(document.token_ids)
    sample: dict[str, Tensor] = {
        "hidden_states": document.hidden_states[:, :-1].flatten(1),
        "input_ids": document.token_ids.long(),
        "verifier_last_hidden_states": document.hidden_states[:, -1],
        "loss_mask": document.supervised if mask_L is None else mask_L,
        "lengths": torch.tensor([length]),
        "position_ids": torch.arange(length),
    }
    return sample


def row(samples: list[dict[str, Tensor]], positions: int) -> Row:
    """Documents one after another, shifted and padded to `positions` by its own collator."""
    width = samples[0]["verifier_last_hidden_states"].shape[-1]
    aux = samples[0]["hidden_states"].shape[-1] // width
    batch = CollateFn(positions, width, aux, torch.float32, shift_batch)(samples)
    tensors = {name: value for name, value in batch.items() if isinstance(value, Tensor)}
    return Row(tensors, sum(len(one["input_ids"]) for one in samples))


def packed(samples: list[dict[str, Tensor]], positions: int, seed: int = 0) -> list[Row]:
    """All documents in rows of `positions`, chosen by its own sampler; the few that fill no row are left out."""
    lengths = [len(one["input_ids"]) for one in samples]
    sampler = MultipackDistributedBatchSamplerV2(positions, lengths, num_replicas=1, rank=0, seed=seed)
    return [row([samples[int(index)] for index in indices], positions) for indices in sampler]


def loss(model: Eagle3DraftModel, one: Row, steps: int, decay: float) -> Tensor:
    """Its KL over one row."""
    _, total, _ = model(**one.batch, ttt_steps=steps, ttt_step_loss_decay=decay, loss_config=LOSS)
    result: Tensor = total
    return result


def gradients(model: Eagle3DraftModel) -> dict[str, Tensor]:
    """Gradients under our names."""
    return {
        name.replace(THEIRS, OURS): parameter.grad
        for name, parameter in model.named_parameters()
        if parameter.grad is not None
    }


def entropy(p_RV: Tensor, counted_R: Tensor, steps: int, decay: float) -> float:
    """What our cross-entropy has on top of its KL: sum over s of decay^s * mean entropy of the rows s counts.

    `counted_R` tells which rows of one wholly supervised document count at step 0; step s drops the first s.
    """
    entropy_R = torch.special.entr(p_RV.double()).sum(-1)
    parts = [entropy_R[s:][counted_R[s:]].mean() * decay**s for s in range(steps) if counted_R[s:].any()]
    return float(torch.stack(parts).sum())


def solve(head: Eagle3Head, teacher: Teacher, document: Document, steps: int, decay: float) -> Solution:
    """Cross-entropy and gradients, under our names, that speculators computes for a wholly supervised document."""
    counted_R = countable(head, document)
    # Row i is masked at token i + 1. The last token has none: what follows it is not in the document.
    mask_L = torch.cat([torch.tensor([False]), counted_R, torch.tensor([False])])
    one = row([sample(document, mask_L)], len(mask_L) - 1)
    model = model_of(head, teacher)
    total = loss(model, one, steps, decay)
    total.backward()
    p_RV = teacher.logits(document.hidden_states[1:-1, -1].float(), head.target_ids_V).softmax(-1)
    return total.item() + entropy(p_RV, counted_R, steps, decay), gradients(model)
