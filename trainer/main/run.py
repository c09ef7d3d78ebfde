# SPDX-License-Identifier: Apache-2.0
"""`aerie train main`: corpus → tokenizer → model → checkpoint, resumable, with its provenance."""

import json
import math
from pathlib import Path
from typing import Any

import torch
from transformers import (
    Qwen3Config,
    Qwen3ForCausalLM,
    Qwen3MoeConfig,
    Qwen3MoeForCausalLM,
    Trainer,
    TrainingArguments,
    set_seed,
)
from transformers.trainer_utils import get_last_checkpoint

from aerie.artefacts import output_directory, provenance, sha256_file, write_json
from aerie.trainer.clinic.corpus import dialogues
from aerie.trainer.clinic.knowledge import KNOWLEDGE_DIR
from aerie.trainer.main.data import Documents, RightPadding, segments
from aerie.trainer.main.recipe import MainRecipe
from aerie.trainer.main.tokenizer import train_tokenizer
from aerie.trainer.output import check_output
from aerie.trainer.recipe import RecipeError

CARD, RECIPE = "aerie.json", "recipe.json"
TOKENIZER_DOCUMENTS = 4000


def native_bfloat16() -> bool:
    """Whether this machine multiplies bfloat16 in hardware rather than emulating it."""
    return torch.cuda.is_available() or torch.cpu._is_avx512_bf16_supported()


def build_model(recipe: MainRecipe, eos: int, pad: int) -> Qwen3ForCausalLM | Qwen3MoeForCausalLM:
    """A freshly initialised Qwen3 or Qwen3-MoE, float32, tied embeddings; deterministic from the recipe's seed."""
    shape = recipe.shape
    set_seed(recipe.seed)
    shared: dict[str, Any] = {
        "vocab_size": shape.vocab_size,
        "hidden_size": shape.hidden_size,
        "intermediate_size": shape.intermediate_size,
        "num_hidden_layers": shape.layers,
        "num_attention_heads": shape.attention_heads,
        "num_key_value_heads": shape.key_value_heads,
        "head_dim": shape.head_dim,
        "max_position_embeddings": shape.max_position_embeddings,
        "rope_parameters": {"rope_type": "default", "rope_theta": shape.rope_theta},
        "tie_word_embeddings": True,
        "eos_token_id": eos,
        "pad_token_id": pad,
        "use_cache": False,
    }
    model = _sparse_model(recipe, shared) if shape.experts else Qwen3ForCausalLM(Qwen3Config(**shared))
    model.generation_config.eos_token_id = eos
    model.generation_config.pad_token_id = pad
    return model


def _sparse_model(recipe: MainRecipe, shared: dict[str, Any]) -> Qwen3MoeForCausalLM:
    sparse: dict[str, Any] = {
        "num_experts": recipe.shape.experts,
        "num_experts_per_tok": recipe.shape.experts_per_token,
        "moe_intermediate_size": recipe.shape.moe_intermediate_size,
        "norm_topk_prob": True,
        "router_aux_loss_coef": recipe.optimisation.router_loss,
        "output_router_logits": True,  # adds the router's loss to the model's
        # Measured on one core with bfloat16 autocast, a step of 16 experts: 1.5 times as fast as `eager`, and 40 times
        # `batched_mm`, which copies an expert's weights for every token.
        "experts_implementation": "grouped_mm",
    }
    return Qwen3MoeForCausalLM(Qwen3MoeConfig(**shared, **sparse))


def _arguments(recipe: MainRecipe, work: Path) -> TrainingArguments:
    optimisation = recipe.optimisation
    bfloat16 = optimisation.precision == "bfloat16" or (optimisation.precision == "auto" and native_bfloat16())
    return TrainingArguments(
        output_dir=str(work),
        seed=recipe.seed,
        data_seed=recipe.seed,
        num_train_epochs=optimisation.epochs,
        per_device_train_batch_size=optimisation.documents_per_step,
        per_device_eval_batch_size=optimisation.documents_per_step,
        train_sampling_strategy="group_by_length",
        learning_rate=optimisation.learning_rate,
        lr_scheduler_type="cosine",
        warmup_steps=optimisation.warmup_share,
        weight_decay=optimisation.weight_decay,
        adam_beta2=optimisation.beta2,
        max_grad_norm=optimisation.gradient_clip,
        optim="adamw_torch_fused",
        bf16=bfloat16,
        use_cpu=not torch.cuda.is_available(),
        logging_steps=20,
        save_steps=optimisation.save_steps,
        save_total_limit=2,
        report_to=[],
        remove_unused_columns=False,
        dataloader_pin_memory=False,
        dataloader_num_workers=0,
    )


def _card(recipe: MainRecipe, trainer: Trainer, train: Documents, perplexity: float) -> dict[str, Any]:
    inputs = {path.name: sha256_file(path) for path in sorted(KNOWLEDGE_DIR.glob("*.yaml"))}
    return {
        "provenance": provenance(recipe.model_dump(mode="json"), [recipe.seed, recipe.corpus.seed], inputs),
        "training": {
            "documents": len(train),
            "tokens": train.tokens,
            "steps": trainer.state.global_step,
            "bfloat16": bool(trainer.args.bf16),
            "log": trainer.state.log_history,
        },
        "validation_perplexity": perplexity,
    }


def run(recipe_path: Path) -> Path:
    """Train the recipe's model and return the finished checkpoint's folder.

    A run that was cut off goes on from its last saved step when it is started again.
    """
    recipe = MainRecipe.read(recipe_path)
    dumped = recipe.model_dump(mode="json")
    check_output(recipe.output, CARD, dumped, lambda card: card["provenance"]["arguments"])
    work = _work(recipe, dumped)
    corpus = recipe.corpus
    train_dialogues = list(dialogues("train", corpus.documents, corpus.seed))
    texts = ("".join(text for text, _ in segments(one)) for one in train_dialogues[:TOKENIZER_DOCUMENTS])
    tokenizer = train_tokenizer(texts, recipe.shape.vocab_size, recipe.shape.max_position_embeddings)
    train = Documents(train_dialogues, tokenizer, recipe.seed)
    validation = Documents(
        list(dialogues("validation", corpus.validation_documents, corpus.seed)), tokenizer, recipe.seed
    )
    pad = int(tokenizer.pad_token_id or 0)
    model = build_model(recipe, int(tokenizer.eos_token_id or 0), pad)
    if recipe.optimisation.compile:
        for layer in model.model.layers:
            layer.compile(dynamic=True)
    trainer = Trainer(
        model=model,
        args=_arguments(recipe, work),
        train_dataset=train,
        eval_dataset=validation,
        data_collator=RightPadding(pad, mask=recipe.shape.experts is not None),
    )
    trainer.train(resume_from_checkpoint=get_last_checkpoint(str(work)) if work.is_dir() else None)
    if isinstance(model, Qwen3MoeForCausalLM):
        # The router's loss is training's: no part of the perplexity, nor of what the checkpoint's readers compute.
        model.config.output_router_logits = False
    perplexity = math.exp(trainer.evaluate()["eval_loss"])
    with output_directory(recipe.output, replaces=CARD) as staging:
        model.bfloat16()
        model.config.use_cache = True
        model.save_pretrained(staging)
        tokenizer.save_pretrained(staging)
        files = sorted(path.name for path in staging.iterdir())
        write_json(staging / CARD, {**_card(recipe, trainer, train, perplexity), "files": files})
    return recipe.output


def _work(recipe: MainRecipe, dumped: object) -> Path:
    """The folder of the training's checkpoints; raises RecipeError where those of another recipe are in it."""
    work = recipe.output.with_name(f"{recipe.output.name}.work")
    begun = work / RECIPE
    if work.is_dir() and any(work.glob("checkpoint-*")):
        known = json.loads(begun.read_text(encoding="utf-8")) if begun.is_file() else None
        if known is not None and known != dumped:
            raise RecipeError(
                f"output: {work} holds the checkpoints of another recipe; remove it, or choose another folder"
            )
    write_json(begun, dumped)
    return work
