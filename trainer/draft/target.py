# SPDX-License-Identifier: Apache-2.0
"""The target in process: its plain weights, and the part of them the head's training needs."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, cast

import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from aerie.trainer.recipe import RecipeError

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def load_target(target: Path) -> "PreTrainedModel":
    """The target as a float32 transformers model in evaluation mode; an INT4 one dequantised to the same values."""
    from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

    config = AutoConfig.from_pretrained(target)
    model: PreTrainedModel
    if getattr(config, "quantization_config", None) is None:
        model = AutoModelForCausalLM.from_pretrained(target, dtype=torch.float32)
    else:
        from aerie.quant.dequantise import load_dequantised

        model = load_dequantised(target)
    model.eval()
    return model


@dataclass(frozen=True)
class Teacher:
    """The target's ends: what turns ids into embeddings and the last residual stream into logits."""

    embed_WH: Tensor
    head_WH: Tensor
    norm_H: Tensor
    eps: float

    @classmethod
    def of(cls, model: "PreTrainedModel") -> "Teacher":
        """Read from a loaded target. Raises RecipeError for architectures that lack these parts."""
        norm, head = getattr(getattr(model, "model", None), "norm", None), model.get_output_embeddings()
        eps = getattr(norm, "variance_epsilon", None)
        if eps is None or not isinstance(head, nn.Linear):
            name = type(model).__name__
            raise RecipeError(f"target: {name} has no final RMSNorm and dense lm_head to learn from")
        embed, weight = cast(nn.Embedding, model.get_input_embeddings()).weight, cast(nn.Module, norm).weight
        return cls(embed.detach().clone(), head.weight.detach().clone(), cast(Tensor, weight).detach().clone(), eps)

    def save(self, path: Path) -> None:
        """Write to one safetensors file; tied embeddings are stored once."""
        tensors = {"embed": self.embed_WH, "norm": self.norm_H, "eps": torch.tensor(self.eps, dtype=torch.float64)}
        if not torch.equal(self.embed_WH, self.head_WH):
            tensors["head"] = self.head_WH
        save_file(tensors, path)

    @classmethod
    def load(cls, path: Path) -> "Teacher":
        """What `save` wrote."""
        tensors = load_file(path)
        head = tensors.get("head", tensors["embed"])
        return cls(tensors["embed"], head, tensors["norm"], float(tensors["eps"]))

    def logits(self, final_TH: Tensor, ids_V: Tensor | None = None) -> Tensor:
        """The target's logits from the residual stream before the last norm; over `ids_V` only, when given."""
        normed = F.rms_norm(final_TH, self.norm_H.shape, self.norm_H, self.eps)
        return F.linear(normed, self.head_WH if ids_V is None else self.head_WH[ids_V])
