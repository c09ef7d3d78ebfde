# SPDX-License-Identifier: Apache-2.0
"""Serve prompts greedily through vLLM in this one process and print what came out as JSON; run by test_int4.py.

A process of its own because vLLM's engine cannot be undone, and because the instruction set must be chosen before
torch and vLLM look at it.
"""

import argparse
import json
import os
import sys
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal

os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"
os.environ["VLLM_CPU_OMP_THREADS_BIND"] = "nobind"


def pretend_avx2() -> None:
    """Make vLLM load its AVX2 extension and torch take its AVX2 kernels on a CPU that has more."""
    os.environ["ATEN_CPU_CAPABILITY"] = "avx2"
    os.environ["ONEDNN_MAX_CPU_ISA"] = "AVX2"
    import torch.cpu

    # vLLM decides by torch.cpu._is_avx512_supported and its siblings, which all read this mapping.
    found = dict(torch.cpu.get_capabilities())
    lacking = {name: False for name in found if name.startswith(("avx512", "amx", "avx10", "avx_"))}
    limited = MappingProxyType({**found, **lacking})
    setattr(torch.cpu, "get_capabilities", lambda: limited)  # noqa: B010 (its type is that of a cached function)


def serve(model: str, dtype: Literal["float32", "bfloat16"], prompts: list[list[int]], tokens: int) -> dict[str, Any]:
    """Greedy tokens, the log-probabilities of each step's best, and the bytes of the model's parameters by name."""
    import torch
    from vllm import LLM, SamplingParams, TokensPrompt

    llm = LLM(
        model,
        dtype=dtype,
        enforce_eager=True,
        max_model_len=256,
        max_num_seqs=4,
        kv_cache_memory_bytes=1 << 26,
        skip_tokenizer_init=True,
        seed=0,
    )
    sampling = SamplingParams(temperature=0, max_tokens=tokens, ignore_eos=True, detokenize=False, logprobs=5)
    outputs = llm.generate([TokensPrompt(prompt_token_ids=prompt) for prompt in prompts], sampling)
    completions = [output.outputs[0] for output in outputs]
    return {
        "tokens": [list(completion.token_ids) for completion in completions],
        "logprobs": [
            [{token: entry.logprob for token, entry in step.items()} for step in completion.logprobs or ()]
            for completion in completions
        ],
        "bytes": llm.apply_model(lambda module: {name: p.nbytes for name, p in module.named_parameters()})[0],
        "kernels": llm.apply_model(
            lambda module: sorted(
                {type(s.kernel).__name__ for m in module.modules() if (s := getattr(m, "scheme", None))}
            )
        )[0],
        "isa": torch.backends.cpu.get_cpu_capability(),
        "stock_operator": hasattr(torch.ops._C, "cpu_gemm_wna16"),
    }


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("model")
    parser.add_argument("out")
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--avx2", action="store_true")
    parser.add_argument("--tokens", type=int, default=24)
    arguments = parser.parse_args()
    if arguments.avx2:
        pretend_avx2()
    prompts = json.load(sys.stdin)
    result = serve(arguments.model, arguments.dtype, prompts, arguments.tokens)
    Path(arguments.out).write_text(json.dumps(result))


if __name__ == "__main__":
    main()
