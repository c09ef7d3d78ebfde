# SPDX-License-Identifier: Apache-2.0
"""Tiny models and real in-process engines, for every test that needs vLLM to run.

The target is Qwen3 with random weights, except that its lm_head is its embedding table with the rows permuted: each
token has a likely successor, and the layers are the noise that makes it a distribution. The heads are random too, but
their attention looks mostly at its own position and copies its embedding into the output: they guess the successor
often enough that drafts are accepted and rejected at every position.
"""

import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import httpx
import psutil  # type: ignore[import-untyped]  # its stubs are a package of their own
import pytest
import torch
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast, Qwen3Config, Qwen3ForCausalLM

from aerie.benchmarks.serving.gauges import total
from aerie.draft_models.checkpoint import identify_target, write_draft
from aerie.draft_models.contract import DraftConfig, GateKind, tensor_shapes

if TYPE_CHECKING:
    from vllm import LLM

# Tests may run under nohup, whose children ignore a hang-up.
AERIE_SERVE = ("env", "--default-signal=HUP", sys.executable, "-P", "-m", "aerie", "serve")
READY_SECONDS = 900  # a loaded machine; an idle one with two cores takes less than 90
LEAVING_SECONDS = 30  # likewise; moments otherwise
SPECIAL = ("<|im_start|>", "<|im_end|>", "<think>", "</think>")
VOCAB = 256 + len(SPECIAL)  # no multiple of 64: vLLM pads it
DRAFT_VOCAB = 200
HIDDEN, HEADS, KV_HEADS, HEAD_DIM, LAYERS = 64, 4, 2, 32, 8
AUX_LAYER_IDS = (1, 4, 7)
CONTEXT = 512
SHARPNESS = 6.0
"""Scale of the likely successor's logit: about 0.45 probability at temperature 1."""

CHAT_TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def _save_tokenizer(directory: Path) -> None:
    """A byte tokenizer: one token per byte, and the chat markers."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE({byte: index for index, byte in enumerate(alphabet)}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_tokens([AddedToken(name, special=name.startswith("<|"), normalized=False) for name in SPECIAL])
    wrapped = PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<|im_end|>", pad_token="<|im_end|>")
    wrapped.chat_template = CHAT_TEMPLATE
    wrapped.save_pretrained(directory)


def _save_target(directory: Path) -> None:
    torch.manual_seed(0)
    config = Qwen3Config(
        hidden_size=HIDDEN,
        intermediate_size=2 * HIDDEN,
        num_hidden_layers=LAYERS,
        num_attention_heads=HEADS,
        num_key_value_heads=KV_HEADS,
        head_dim=HEAD_DIM,
        vocab_size=VOCAB,
        tie_word_embeddings=False,
        max_position_embeddings=CONTEXT,
        initializer_range=0.05,
        bos_token_id=None,
        eos_token_id=VOCAB - len(SPECIAL) + 1,
        pad_token_id=None,
    )
    model = Qwen3ForCausalLM(config).float()
    embeddings = torch.randn(VOCAB, HIDDEN)
    directions = embeddings / embeddings.norm(dim=1, keepdim=True) * (SHARPNESS / HIDDEN**0.5)
    model.model.embed_tokens.weight.data.copy_(embeddings)
    model.lm_head.weight.data.copy_(directions[torch.randperm(VOCAB)])
    model.save_pretrained(directory)


def _copying_attention(tensors: dict[str, torch.Tensor], generator: torch.Generator) -> None:
    """Equal query and key projections attend to their own position; values carry the embedding through."""
    attention, half = "midlayer.self_attn", HEAD_DIM
    keys = 0.15 * torch.randn(KV_HEADS * HEAD_DIM, 2 * HIDDEN, generator=generator)
    tensors[f"{attention}.k_proj.weight"] = keys
    tensors[f"{attention}.q_proj.weight"] = torch.cat([keys[:half], keys[:half], keys[half:], keys[half:]])
    identity = torch.eye(HIDDEN)
    tensors[f"{attention}.v_proj.weight"] = torch.cat([identity, torch.zeros(HIDDEN, HIDDEN)], dim=1)
    copied = torch.zeros(HIDDEN, HEADS * HEAD_DIM)
    copied[:half, :half] = copied[half:, 2 * half : 3 * half] = 2 * torch.eye(half)
    tensors[f"{attention}.o_proj.weight"] += copied


def _save_draft(directory: Path, target: Path, gate: GateKind) -> None:
    generator = torch.Generator().manual_seed(1)
    config = DraftConfig(
        hidden_size=HIDDEN,
        intermediate_size=2 * HIDDEN,
        num_attention_heads=HEADS,
        num_key_value_heads=KV_HEADS,
        head_dim=HEAD_DIM,
        vocab_size=VOCAB,
        draft_vocab_size=DRAFT_VOCAB,
        target_hidden_size=HIDDEN,
        aux_hidden_state_layer_ids=AUX_LAYER_IDS,
        gate=gate,
        rms_norm_eps=1e-6,
        rope_theta=1e4,
        max_position_embeddings=CONTEXT,
        target=identify_target(target),
    )
    shapes = tensor_shapes(config)
    tensors = {name: 0.05 * torch.randn(shape, generator=generator) for name, shape in shapes.items()}
    for name in tensors:
        if name.endswith("norm.weight"):
            tensors[name] += 1
    _copying_attention(tensors, generator)
    if gate != "none":
        # Wide enough that gates differ: a head served without them would fail the parity test by far.
        tensors["midlayer.self_attn.g_proj.weight"] *= 2
    ids = torch.randperm(VOCAB, generator=generator)[:DRAFT_VOCAB].sort().values
    weights = Qwen3ForCausalLM.from_pretrained(target).lm_head.weight
    tensors["lm_head.weight"] = weights.detach().float()[ids].clone()
    tensors["d2t"] = ids - torch.arange(DRAFT_VOCAB)
    tensors["t2d"] = torch.zeros(VOCAB, dtype=torch.bool).index_fill_(0, ids, value=True)
    write_draft(directory, config, tensors, {"commit": "test"})


@dataclass(frozen=True)
class Server:
    """A running `aerie serve`, the leader of its own session."""

    process: subprocess.Popen[bytes]
    address: str
    log: Path

    def get(self, path: str, key: str | None = None) -> httpx.Response:
        headers = {} if key is None else {"x-api-key": key}
        return httpx.get(self.address + path, headers=headers, timeout=30, trust_env=False)

    def wait_for(self, reached: Callable[[Mapping[str, Any]], bool]) -> None:
        """Until `reached` holds for the body of /readyz."""
        deadline = time.monotonic() + READY_SECONDS
        while time.monotonic() < deadline:
            assert self.process.poll() is None, self.log.read_text()
            with contextlib.suppress(httpx.TransportError):
                if reached(self.get("/readyz").json()):
                    return
            time.sleep(0.05)
        pytest.fail(self.log.read_text())

    def processes(self) -> list[int]:
        """Every living process of the session, whoever its parent is by now."""
        found = []
        for process in psutil.process_iter(["status"]):
            with contextlib.suppress(ProcessLookupError):
                if os.getsid(process.pid) == self.process.pid and process.info["status"] != psutil.STATUS_ZOMBIE:
                    found.append(process.pid)
        return found

    def left(self) -> list[int]:
        """What is left of the session once it had time to go: helpers of `multiprocessing` outlive us by moments."""
        deadline = time.monotonic() + LEAVING_SECONDS
        while (left := self.processes()) and time.monotonic() < deadline:
            time.sleep(0.05)
        return left

    def running(self, name: str) -> psutil.Process:
        """The process of the engine that vLLM calls by that name: `EngineCore` or `Worker`."""
        found = [psutil.Process(pid) for pid in self.processes()]
        return next(process for process in found if any(name in word for word in process.cmdline()))

    def metric(self, name: str, key: str | None = None) -> float:
        """The sum of a metric over its labels."""
        return total(self.get("/metrics", key).text, name)

    def interrupt(self) -> None:
        """Ctrl-C: the terminal sends SIGINT to every process in the foreground."""
        os.killpg(self.process.pid, signal.SIGINT)


@pytest.fixture(scope="session")
def start(tiny_target: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., AbstractContextManager[Server]]:
    """`with start("--no-draft") as server:` a process on a free port, killed with its engine when the block ends.

    With `full_disk=True` no byte of its log can be written, and `server.log` stays empty.
    """

    @contextmanager
    def starting(*arguments: str, full_disk: bool = False) -> Iterator[Server]:
        with socket.create_server(("127.0.0.1", 0)) as probe:
            port = probe.getsockname()[1]
        log = tmp_path_factory.mktemp("server") / "log"
        command = [*AERIE_SERVE, "--model", str(tiny_target), "--port", str(port), "--kv-cache-memory", "64MiB"]
        environ = {**os.environ, "VLLM_CPU_OMP_THREADS_BIND": "nobind", "OMP_NUM_THREADS": "1"}
        log.touch()
        with (Path("/dev/full") if full_disk else log).open("wb") as output:
            process = subprocess.Popen(
                [*command, *arguments],
                stdout=output,
                stderr=output,
                env=environ,
                cwd=log.parent,
                start_new_session=True,
            )
        server = Server(process, f"http://127.0.0.1:{port}", log)
        try:
            yield server
        finally:
            process.kill()
            process.wait()
            left = server.left()
            for pid in left:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
        assert left == [], "a server that is killed leaves no process of its engine"

    return starting


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """An engine in this process runs vLLM's and torch's code: their warnings are theirs, and no error here."""
    for item in items:
        if item.path.is_relative_to(Path(__file__).parent):
            item.add_marker(pytest.mark.filterwarnings("default"))


@pytest.fixture(scope="session")
def tiny_target(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint of a random Qwen3 of eight layers in float32, with a byte tokenizer and a ChatML template."""
    directory = tmp_path_factory.mktemp("tiny") / "target"
    _save_target(directory)
    _save_tokenizer(directory)
    return directory


@pytest.fixture(scope="session")
def tiny_drafts(tiny_target: Path) -> Mapping[GateKind, Path]:
    """A draft checkpoint of each kind for `tiny_target`; they differ in the gate only."""
    gates: tuple[GateKind, ...] = ("elementwise", "headwise", "none")
    drafts = {gate: tiny_target.parent / f"draft-{gate}" for gate in gates}
    for gate, directory in drafts.items():
        _save_draft(directory, tiny_target, gate)
    return drafts


@pytest.fixture(scope="session")
def open_engine() -> Callable[..., AbstractContextManager["LLM"]]:
    """`with open_engine(model, draft=None, draft_tokens=3, **vllm_options) as llm:` one engine, in this process."""

    @contextmanager
    def engine(model: Path, draft: Path | None = None, draft_tokens: int = 3, **options: object) -> Iterator["LLM"]:
        from vllm import LLM
        from vllm.distributed import cleanup_dist_env_and_memory

        speculative = {"method": "eagle3", "model": str(draft), "num_speculative_tokens": draft_tokens}
        defaults: dict[str, object] = {
            "dtype": "float32",
            "enforce_eager": True,
            "max_model_len": CONTEXT,
            "max_num_seqs": 64,
            "kv_cache_memory_bytes": 256 << 20,
            "enable_prefix_caching": False,
            "disable_log_stats": False,
            "speculative_config": speculative if draft is not None else None,
        }
        with pytest.MonkeyPatch.context() as patch:
            # In one process, tests can look into the worker, and an engine starts in seconds.
            patch.setenv("VLLM_ENABLE_V1_MULTIPROCESSING", "0")
            patch.setenv("VLLM_CPU_OMP_THREADS_BIND", "nobind")
            llm = LLM(str(model), **(defaults | options))  # type: ignore[arg-type]  # LLM's own types, by name
            try:
                yield llm
            finally:
                del llm
                cleanup_dist_env_and_memory()

    return engine
