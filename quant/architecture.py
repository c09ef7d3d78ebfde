# SPDX-License-Identifier: Apache-2.0
"""What the model of a config.json consists of, found without allocating it."""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch

from aerie.quant.errors import QuantError

DRAFT = "draft_vocab_size"
"""The key of config.json that only drafts have."""
FUSED_EXPERTS = re.compile(r"(.*\.experts)\.(gate_up_proj|down_proj)$")


@dataclass(frozen=True)
class Architecture:
    """Names are those of a checkpoint's layers."""

    linear: frozenset[str]
    """Linear layers, experts apart: transformers has no modules for those."""
    embeddings: frozenset[str]
    tied: bool
    """Whether the head that makes the logits has the embeddings' weight."""
    shapes: Mapping[str, tuple[int, ...]]
    """Of every parameter of a plain checkpoint, experts one by one; tied ones once."""

    @classmethod
    def draft(cls, shapes: Mapping[str, tuple[int, ...]]) -> "Architecture":
        """Of a draft head, which transformers does not know: every matrix but embeddings is a linear layer's."""
        matrices = {name.removesuffix(".weight") for name, shape in shapes.items() if len(shape) == 2}
        embeddings = {name for name in matrices if name.rpartition(".")[2] == "embed_tokens"}
        return cls(frozenset(matrices - embeddings), frozenset(embeddings), tied=False, shapes=shapes)

    @classmethod
    def of(cls, config: Mapping[str, Any]) -> "Architecture":
        """Build the model on the meta device.

        Raises:
            QuantError: transformers does not know it.
        """
        from transformers import AutoConfig, AutoModelForCausalLM

        factory: Any = AutoModelForCausalLM  # its methods carry no types
        keywords = {key: value for key, value in config.items() if key not in ("model_type", "quantization_config")}
        try:
            architecture = AutoConfig.for_model(config["model_type"], **keywords)
            with torch.device("meta"):
                model = factory.from_config(architecture)
        except (KeyError, ValueError) as error:
            raise QuantError(f"config.json names an architecture transformers does not know ({error})") from error
        tied = bool(architecture.get_text_config().tie_word_embeddings)
        modules = list(model.named_modules())
        return cls(
            frozenset(name for name, module in modules if isinstance(module, torch.nn.Linear)),
            frozenset(name for name, module in modules if isinstance(module, torch.nn.Embedding)),
            tied,
            dict(_stored(dict(model.named_parameters()))),
        )


def _stored(parameters: Mapping[str, torch.Tensor]) -> Iterator[tuple[str, tuple[int, ...]]]:
    """Names and shapes under which a checkpoint holds the parameters, whose experts transformers joins."""
    for name, parameter in parameters.items():
        found = FUSED_EXPERTS.match(name)
        if found is None or not _joined(parameters, found[1]):
            yield name, tuple(parameter.shape)
            continue
        experts, outputs, inputs = parameter.shape
        layers = ("gate_proj", "up_proj") if found[2] == "gate_up_proj" else (found[2],)
        for expert in range(experts):
            for layer in layers:
                yield f"{found[1]}.{expert}.{layer}.weight", (outputs // len(layers), inputs)


def _joined(parameters: Mapping[str, torch.Tensor], block: str) -> bool:
    """Whether the experts are linear layers [outputs, inputs] put together when loaded.

    Checkpoints of other architectures hold them joined, and transposed.
    """
    gate_up, down = (parameters.get(f"{block}.{name}") for name in ("gate_up_proj", "down_proj"))
    if gate_up is None or down is None or gate_up.dim() != 3 or down.dim() != 3:
        return False
    return tuple(gate_up.shape[1:]) == (2 * down.shape[2], down.shape[1])
