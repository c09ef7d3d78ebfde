# SPDX-License-Identifier: Apache-2.0
"""A model of Qwen3-0.6B's shape with random weights, and its INT4 twin: what a step costs does not ask for sense."""

from dataclasses import dataclass
from pathlib import Path

from aerie.artefacts import output_directory
from aerie.quant.recipe import QuantRecipe
from aerie.quant.report import QuantReport
from aerie.quant.run import quantise
from aerie.quant.stream import REPORT_NAME

# The range of a group of random weights is as good as any other; searching for a better one takes minutes.
RECIPE = QuantRecipe(clip="absmax")
BYTES = {"float32": 4, "bfloat16": 2}


@dataclass(frozen=True)
class Shape:
    """What may be smaller than in Qwen3-0.6B, to try the benchmark out."""

    layers: int = 28
    vocabulary: int = 151936


@dataclass(frozen=True)
class Models:
    """Both checkpoints, and what the quantiser said of them."""

    bf16: Path
    int4: Path
    report: QuantReport

    def parameter_bytes(self, weights: str, dtype: str) -> int:
        """Parameters in an engine of that dtype. Counted, for the engine's kernels repack some and hide others."""
        return self.report.resident_bytes[dtype] if weights == "int4" else self.report.parameters * BYTES[dtype]


def models(folder: Path, shape: Shape, seed: int) -> Models:
    """Make both models in `folder`, unless they are there."""
    bf16, int4 = folder / "bf16", folder / "int4"
    if not bf16.exists():
        with output_directory(bf16) as staging:
            _write_model(staging, shape, seed)
            _write_tokenizer(staging, shape.vocabulary)
    if not int4.exists():
        quantise(bf16, int4, RECIPE)
    return Models(bf16, int4, QuantReport.model_validate_json((int4 / REPORT_NAME).read_text()))


def _write_model(folder: Path, shape: Shape, seed: int) -> None:
    import torch
    from transformers import Qwen3Config, Qwen3ForCausalLM

    torch.manual_seed(seed)
    config = Qwen3Config(
        hidden_size=1024,
        intermediate_size=3072,
        num_hidden_layers=shape.layers,
        num_attention_heads=16,
        num_key_value_heads=8,
        head_dim=128,
        vocab_size=shape.vocabulary,
        max_position_embeddings=4096,
        rope_parameters={"rope_type": "default", "rope_theta": 1e6},
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=None,
        pad_token_id=None,
    )
    Qwen3ForCausalLM(config).bfloat16().save_pretrained(folder)


def _write_tokenizer(folder: Path, vocabulary: int) -> None:
    """A word for each token: the engine turns every answer into text."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.WordLevel({f"t{token}": token for token in range(vocabulary)}, unk_token="t0"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="t0").save_pretrained(folder)
