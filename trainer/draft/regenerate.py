# SPDX-License-Identifier: Apache-2.0
"""The target answers the prompts, so that the head learns the distribution it will meet when served.

An answer is kept as token ids, never as text that would be tokenised anew: what follows a prompt in training is
exactly what the engine produced, reasoning and end-of-turn token included.
"""

import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from aerie.artefacts import write_atomic
from aerie.trainer.draft.prompts import Chat
from aerie.trainer.draft.recipe import Answers
from aerie.trainer.recipe import RecipeError


@dataclass(frozen=True)
class Answered:
    """One prompt as the engine sees it, and the target's answer."""

    prompt_ids: list[int]
    answer_ids: list[int]


def regenerate(target: Path, chats: list[Chat], answers: Answers, temperature: float) -> list[Answered]:
    """Answer every chat; deterministic for a given engine, machine and seed. Raises RecipeError."""
    from transformers import AutoConfig, AutoTokenizer

    tokenizer: Any = AutoTokenizer.from_pretrained(target)
    texts = [tokenizer.apply_chat_template(chat, add_generation_prompt=True, tokenize=False) for chat in chats]
    rendered: list[list[int]] = tokenizer(texts, add_special_tokens=False)["input_ids"]
    longest = AutoConfig.from_pretrained(target).max_position_embeddings
    prompts = [ids for ids in rendered if len(ids) + answers.max_tokens <= longest]
    if not prompts:
        raise RecipeError(f"answers.max_tokens: no prompt leaves room for {answers.max_tokens} of {longest} positions")
    generate = _with_vllm if answers.engine == "vllm" else _with_transformers
    generated = generate(target, prompts, answers, temperature)
    return [Answered(prompt, answer) for prompt, answer in zip(prompts, generated, strict=True)]


def write_answers(path: Path, answered: list[Answered]) -> None:
    """One JSON object a line."""
    lines = [json.dumps({"prompt_ids": one.prompt_ids, "answer_ids": one.answer_ids}) for one in answered]
    write_atomic(path, "\n".join(lines) + "\n")


def read_answers(path: Path) -> list[Answered]:
    """What `write_answers` wrote."""
    return [Answered(**json.loads(line)) for line in path.read_text().splitlines()]


def _with_vllm(target: Path, prompts: list[list[int]], answers: Answers, temperature: float) -> list[list[int]]:
    # Pinning the engine's threads to cores would fight with whatever else the machine runs.
    os.environ.setdefault("VLLM_CPU_OMP_THREADS_BIND", "nobind")
    import torch
    from vllm import LLM, SamplingParams
    from vllm.inputs import TokensPrompt

    on_cpu = not torch.cuda.is_available()
    limits: dict[str, object] = {"kv_cache_memory_bytes": 512 << 20} if on_cpu else {}
    engine = LLM(
        model=str(target),
        dtype="float32" if on_cpu else "auto",
        enforce_eager=on_cpu,
        seed=answers.seed,
        max_model_len=max(map(len, prompts)) + answers.max_tokens,
        max_num_seqs=64,
        **limits,  # type: ignore[arg-type]  # vLLM types each option on its own
    )
    sampling = [
        SamplingParams(temperature=temperature, max_tokens=answers.max_tokens, seed=answers.seed + index)
        for index in range(len(prompts))
    ]
    try:
        outputs = engine.generate([TokensPrompt(prompt_token_ids=ids) for ids in prompts], sampling)
    finally:
        engine.llm_engine.engine_core.shutdown()
    return [list(output.outputs[0].token_ids) for output in outputs]


def _with_transformers(target: Path, prompts: list[list[int]], answers: Answers, temperature: float) -> list[list[int]]:
    import torch

    from aerie.trainer.draft.target import load_target

    model = load_target(target)
    ends = model.generation_config.eos_token_id
    stop = set(ends if isinstance(ends, list) else [ends]) - {None}
    generator = torch.Generator().manual_seed(answers.seed)
    generated = []
    with torch.inference_mode():
        for prompt in prompts:
            ids, cache, answer = torch.tensor([prompt]), None, list[int]()
            while len(answer) < answers.max_tokens and not (answer and answer[-1] in stop):
                output = model(ids, past_key_values=cache, use_cache=True, logits_to_keep=1)
                logits, cache = output.logits[0, -1], output.past_key_values
                if temperature == 0:
                    answer.append(int(logits.argmax()))
                else:
                    chances = (logits / temperature).softmax(-1)
                    answer.append(int(torch.multinomial(chances, 1, generator=generator)))
                ids = torch.tensor([[answer[-1]]])
            generated.append(answer)
    return generated
