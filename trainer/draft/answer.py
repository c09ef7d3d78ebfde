# SPDX-License-Identifier: Apache-2.0
"""The two engines that answer prompts: token ids in, token ids out, each prompt with a seed of its own."""

import io
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

from aerie.trainer.draft.child import Counter
from aerie.trainer.draft.recipe import Answers

Asked = list[tuple[list[int], int]]
"""Prompts, each with the seed of its answer."""
Answer = Callable[[Asked], list[list[int]]]
RUNNING = 64
"""Requests that vLLM answers at once."""
CACHE = 512 << 20
"""Bytes for keys and values on a CPU, where vLLM would else take its share of all memory."""


def counting(counter: Counter) -> Callable[..., Any]:
    """A bar for vLLM's `use_tqdm` that shows nothing and counts what is finished."""
    from tqdm import tqdm  # type: ignore[import-untyped]  # its stubs are a package of their own

    class Counting(tqdm):  # type: ignore[misc]  # untyped
        def update(self, n: float | None = 1) -> bool | None:
            # vLLM has another bar, of the prompts it was given.
            if self.desc.startswith("Processed"):
                counter.value += int(n or 0)
            shown: bool | None = super().update(n)
            return shown

    return partial(Counting, file=io.StringIO(), mininterval=3600)


@contextmanager
def answer_with_vllm(
    target: Path, answers: Answers, temperature: float, context: int, counter: Counter
) -> Iterator[Answer]:
    """Yield what answers through vLLM; meant for a process of its own (child.py).

    `context` counts positions; `counter` is raised by one for each answer.
    """
    import torch
    from vllm import LLM, SamplingParams
    from vllm.inputs import TokensPrompt

    on_cpu = not torch.cuda.is_available()
    limits: dict[str, Any] = {"kv_cache_memory_bytes": CACHE} if on_cpu else {}
    engine = LLM(
        model=str(target),
        dtype="float32" if on_cpu else "auto",
        enforce_eager=on_cpu,
        seed=answers.seed,
        max_model_len=context,
        max_num_seqs=RUNNING,
        tensor_parallel_size=answers.tensor_parallel_size,
        **limits,
    )

    def answer(asked: Asked) -> list[list[int]]:
        prompts = [TokensPrompt(prompt_token_ids=ids) for ids, _ in asked]
        sampling = [
            SamplingParams(temperature=temperature, max_tokens=answers.max_tokens, seed=seed) for _, seed in asked
        ]
        outputs = engine.generate(prompts, sampling, use_tqdm=counting(counter))
        return [list(output.outputs[0].token_ids) for output in outputs]

    try:
        yield answer
    finally:
        engine.llm_engine.engine_core.shutdown()


@contextmanager
def answer_in_process(target: Path, answers: Answers, temperature: float, counter: Counter) -> Iterator[Answer]:
    """Yield what answers through transformers, one prompt after another; for tiny targets."""
    import torch

    from aerie.trainer.draft.target import load_target

    model = load_target(target)
    ends = model.generation_config.eos_token_id
    stop = set(ends if isinstance(ends, list) else [ends]) - {None}

    @torch.inference_mode()
    def one(prompt: list[int], seed: int) -> list[int]:
        generator = torch.Generator().manual_seed(seed)
        ids, cache, answer = torch.tensor([prompt]), None, list[int]()
        while len(answer) < answers.max_tokens and not (answer and answer[-1] in stop):
            output = model(ids, past_key_values=cache, use_cache=True, logits_to_keep=1)
            logits, cache = output.logits[0, -1], output.past_key_values
            if temperature == 0:
                answer.append(int(logits.argmax()))
            else:
                answer.append(int(torch.multinomial((logits / temperature).softmax(-1), 1, generator=generator)))
            ids = torch.tensor([[answer[-1]]])
        counter.value += 1
        return answer

    yield lambda asked: [one(prompt, seed) for prompt, seed in asked]
