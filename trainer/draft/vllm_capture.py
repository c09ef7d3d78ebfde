# SPDX-License-Identifier: Apache-2.0
"""Hidden states from vLLM, computed by the kernels that serve the target.

Documents are prefilled as prompts; vLLM's `extract_hidden_states` keeps what the asked layers put out in a cache beside
the keys and values, and a connector (vllm_connector.py) stores it when the request ends. Read against 0.32 and 0.33.
"""

import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from aerie.trainer.draft.recipe import Capture
from aerie.trainer.draft.regenerate import Answered
from aerie.trainer.draft.shards import DataError
from aerie.trainer.draft.support import check_served

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PretrainedConfig
    from vllm import RequestOutput

SAMPLED = 1
"""Tokens that the engine adds to a document; it samples at least one."""
LEAST_CACHE = 512 << 20
"""Bytes for keys, values and states on a CPU, where vLLM would else take its share of all memory."""


@contextmanager
def states_from_vllm(
    target: Path, ids: tuple[int, ...], settings: Capture, longest: int, scratch: Path
) -> Iterator[Callable[[list[Answered]], "list[Tensor]"]]:
    """Yield what computes [L, A + 1, H] of every document: aux layers, then the stream before the last norm.

    Meant for a process of its own (child.py). Needs room in `scratch` for the states of one call, in the engine's type.
    `longest` counts the tokens of the longest document.
    """
    import torch
    from transformers import AutoConfig
    from vllm import LLM, SamplingParams
    from vllm.config import KVTransferConfig
    from vllm.inputs import TokensPrompt

    check_served(target)
    config = AutoConfig.from_pretrained(target).get_text_config()
    layers = [*ids, config.num_hidden_layers]
    on_cpu = not torch.cuda.is_available()
    limits: dict[str, Any] = {"kv_cache_memory_bytes": _cache_bytes(config, longest, len(layers))} if on_cpu else {}
    engine = LLM(
        model=str(target),
        dtype="float32" if on_cpu else "auto",
        enforce_eager=on_cpu,
        max_model_len=longest + SAMPLED,
        max_num_batched_tokens=max(settings.batch_tokens, longest + SAMPLED),
        tensor_parallel_size=settings.tensor_parallel_size,
        # A cached prefix is not computed again, and what is not computed is not captured.
        enable_prefix_caching=False,
        speculative_config={
            "method": "extract_hidden_states",
            "num_speculative_tokens": SAMPLED,
            "draft_model_config": {"hf_config": {"eagle_aux_hidden_state_layer_ids": layers}},
        },
        kv_transfer_config=KVTransferConfig(
            kv_connector="HiddenStatesConnector",
            kv_connector_module_path="aerie.trainer.draft.vllm_connector",
            kv_role="kv_producer",
            kv_connector_extra_config={"shared_storage_path": str(scratch)},
        ),
        **limits,
    )
    sampling = SamplingParams(max_tokens=SAMPLED, temperature=0, detokenize=False)

    def states(documents: list[Answered]) -> "list[Tensor]":
        prompts = [TokensPrompt(prompt_token_ids=one.token_ids) for one in documents]
        outputs = engine.generate(prompts, sampling, use_tqdm=False)
        # With its core in this process nothing runs between calls: a step hands over the states of what finished last,
        # and one more frees their blocks.
        engine.llm_engine.step()
        engine.llm_engine.step()
        return [_collect(output, one) for output, one in zip(outputs, documents, strict=True)]

    try:
        yield states
    finally:
        engine.llm_engine.engine_core.shutdown()
        shutil.rmtree(scratch, ignore_errors=True)


def _collect(output: "RequestOutput", document: Answered) -> "Tensor":
    from vllm.distributed.kv_transfer.kv_connector.v1.example_hidden_states_connector import (
        cleanup_hidden_states,
        load_hidden_states,
    )

    path = (output.kv_transfer_params or {}).get("hidden_states_path")
    if path is None:
        raise DataError("capture.engine: vLLM stored no hidden states; use a version that aerie names, or transformers")
    try:
        # Sleeps until the engine has written the file.
        tensors = load_hidden_states(path)
    except Exception as error:
        raise DataError(
            f"{path}: the engine could not store hidden states ({error}); its log says why. If the disk is full: make "
            f"room in the work folder or lower capture.shard_tokens"
        ) from error
    finally:
        cleanup_hidden_states(path)
    if tensors["token_ids"].tolist() != document.token_ids:
        raise DataError(f"capture.engine: vLLM captured {len(tensors['token_ids'])} tokens, not the {len(document)}")
    return tensors["hidden_states"]


def _cache_bytes(config: "PretrainedConfig", longest: int, states: int) -> int:
    """Room for four of the longest documents in float32."""
    heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
    head_dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    floats: int = 2 * config.num_hidden_layers * heads * head_dim + states * config.hidden_size
    return max(LEAST_CACHE, 4 * 4 * floats * longest)
