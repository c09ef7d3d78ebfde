# SPDX-License-Identifier: Apache-2.0
"""The target in process: its plain weights, and the part of them the head's training needs."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, cast

import torch
import torch.nn.functional as F
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from aerie.quant.errors import NotQuantisedError
from aerie.quant.formats import FORMATS, recognise
from aerie.quant.stream import Checkpoint
from aerie.trainer.recipe import RecipeError

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedModel

CHOICE_ROWS = 1024
"""Positions whose logits are held at once."""
SCALES = ("logits_scaling", "logit_scale", "final_logit_softcapping", "embedding_multiplier", "lm_head_multiplier")
"""Configuration keys of models that scale what enters or leaves the residual stream."""


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
    def read(cls, target: Path) -> "Teacher":
        """Read from a checkpoint's files, float32, without the rest of the model; INT4 is dequantised to its values.

        Raises RecipeError for architectures that lack these parts, and when `lm_head` is neither there as a plain or
        INT4 weight nor tied to the embeddings.
        """
        from transformers import AutoConfig, AutoModelForCausalLM

        config = AutoConfig.from_pretrained(target)
        # Only to know what the parts are: on the meta device a model of any size costs nothing.
        with torch.device("meta"):
            eps = check_ends(AutoModelForCausalLM.from_config(_plain(config)))
        weights = Weights(target)
        embed = weights.read("embed_tokens")
        norm = weights.read("model.norm", "language_model.norm")
        if embed is None or norm is None:
            missing = "embed_tokens" if embed is None else "norm"
            raise RecipeError(f"target: {target} holds no {missing} weight that we can read, plain or as our INT4")
        head = embed if config.tie_word_embeddings else weights.read("lm_head")
        if head is None:
            raise RecipeError(
                f"target: {target} ties no embeddings, and its lm_head is neither a plain weight nor an INT4 one that "
                f"we read ({', '.join(FORMATS)}); found {weights.names('lm_head') or 'none'}: quantise the target "
                f"again with lm_head among the ignored layers"
            )
        return cls(embed, head, norm, eps)

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

    def choices(self, final_TH: Tensor) -> Tensor:
        """The most likely next token of every position, int32 [T]."""
        # A large vocabulary's logits of a whole document would take gigabytes.
        parts = [self.logits(part).argmax(-1) for part in final_TH.float().split(CHOICE_ROWS)]
        return torch.cat(parts).to(torch.int32)


class Weights:
    """Single weights of a checkpoint's safetensors files, found by the end of their layer's name."""

    def __init__(self, target: Path) -> None:
        self._source = Checkpoint.open(target)
        self._shards = {name: shard for shard in self._source.shards for name in _names(shard)}

    def names(self, *layers: str) -> list[str]:
        """All tensors of the layer, which may go by one of several names."""
        ends = tuple(f".{layer}" for layer in layers)
        return [name for name in sorted(self._shards) if f".{name.rpartition('.')[0]}".endswith(ends)]

    def read(self, *layers: str) -> Tensor | None:
        """The layer's weight, float32; None when it is not there, or in a form that we cannot read."""
        tensors = {name.rpartition(".")[2]: self._tensor(name) for name in self.names(*layers)}
        if "weight" in tensors:
            return tensors["weight"].float()
        layout = recognise(self._source.config)
        try:
            return None if layout is None else layout.read(tensors).dequantise()
        except NotQuantisedError:
            return None

    def _tensor(self, name: str) -> Tensor:
        with safe_open(self._shards[name], framework="pt") as file:
            return cast(Tensor, file.get_tensor(name))


def check_ends(model: "PreTrainedModel") -> float:
    """The epsilon of the model's last norm; raises RecipeError when a teacher of ours would compute other logits."""
    norm, head = getattr(getattr(model, "model", None), "norm", None), model.get_output_embeddings()
    # transformers' RMSNorms that add one to their weight, or do more, call their epsilon otherwise.
    eps = getattr(norm, "variance_epsilon", None)
    if eps is None or not isinstance(head, nn.Linear):
        raise RecipeError(f"target: {type(model).__name__} has no final RMSNorm and dense lm_head to learn from")
    for name in SCALES:
        if getattr(model.config, name, None) not in (None, 1, 1.0):
            raise RecipeError(f"target: {type(model).__name__} has {name}, which the head's teacher would leave out")
    return float(eps)


def _plain(config: "PretrainedConfig") -> "PretrainedConfig":
    if hasattr(config, "quantization_config"):
        del config.quantization_config
    return config


def _names(shard: Path) -> list[str]:
    with safe_open(shard, framework="pt") as file:
        return list(file.keys())
