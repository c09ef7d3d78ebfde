# SPDX-License-Identifier: Apache-2.0
"""`aerie train draft --plan`: what a training will take, and how long on a named device.

Times are arithmetic, not measurements: FLOPs over peak rate x utilisation, or for answers bytes over bandwidth x
utilisation. The two utilisations are assumptions, stated in the table.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Final

from rich.table import Table

from aerie.trainer.draft.recipe import DraftRecipe
from aerie.trainer.draft.sizing import Sizes, head_parts
from aerie.trainer.recipe import RecipeError


@dataclass(frozen=True)
class Device:
    """Peak rates of one GPU, dense, from NVIDIA's data sheets."""

    bfloat16: float
    """FLOP/s of the tensor cores."""
    float32: float
    """FLOP/s without tensor cores, as PyTorch multiplies float32 unless told otherwise."""
    bandwidth: float
    """Bytes/s of the memory."""
    memory: float
    """Bytes."""


DEVICES: Final = {
    "h100": Device(989e12, 67e12, 3.35e12, 80e9),
    "h200": Device(989e12, 67e12, 4.8e12, 141e9),
    "h20": Device(148e12, 44e12, 4.0e12, 96e9),
}
"""H100 SXM5, H200 SXM and H20; the data sheets' sparse figures halved. H20: not published, as resellers print it."""

TRAINING_UTILISATION: Final = 0.3
"""Assumed share of the peak while training the head: one layer's matrices over a few hundred rows."""
CAPTURE_UTILISATION: Final = 0.4
"""Assumed share of the peak while the target reads whole documents."""
DECODING_UTILISATION: Final = 0.5
"""Assumed share of the memory's bandwidth while the target answers."""
CONCURRENCY: Final = 64
"""Prompts answered at once (regenerate.py)."""


@dataclass(frozen=True)
class Hours:
    """Time of each stage, in hours, on `devices` of one kind."""

    answers: float
    capture: float
    training: float

    @property
    def total(self) -> float:
        """One stage after another."""
        return self.answers + self.capture + self.training


def hours(sizes: Sizes, device: Device, devices: int) -> Hours:
    """The three stages.

    answers: every step of CONCURRENCY requests reads all weights once (of a mixture too: so many tokens choose nearly
    all experts), or multiplies at CAPTURE_UTILISATION, whichever takes longer; the KV cache's bytes are left out.
    capture: FLOPs of the forward passes, as often as the disk budget makes them, at CAPTURE_UTILISATION.
    training: FLOPs at TRAINING_UTILISATION of the peak for the recipe's precision.
    """
    peak = device.bfloat16 * devices
    reading = sizes.target.weight_bytes / (CONCURRENCY * device.bandwidth * devices * DECODING_UTILISATION)
    multiplying = sizes.target.flops(sizes.document_tokens) / (peak * CAPTURE_UTILISATION)
    rate = device.float32 if sizes.recipe.training.precision == "float32" else device.bfloat16
    return Hours(
        answers=sizes.answer_tokens * max(reading, multiplying) / 3600,
        capture=sizes.passes * sizes.capture_flops / (peak * CAPTURE_UTILISATION) / 3600,
        training=sizes.training_flops / (rate * devices * TRAINING_UTILISATION) / 3600,
    )


def rows(sizes: Sizes, name: str, devices: int) -> list[tuple[str, str, str]]:
    """(section, what, value) of everything the plan tells, in order."""
    device, parts, memory = DEVICES[name], head_parts(sizes.head), sizes.memory()
    state, time = sizes.state_bytes_per_token, hours(sizes, device, devices)
    training, flops = sizes.recipe.training, sizes.row_flops()
    whole = sum(memory.values())
    return [
        ("target", "parameters", f"{count(sizes.target.parameters)}, {count(sizes.target.active)} active"),
        ("target", "weights", f"{size(sizes.target.weight_bytes)} at {sizes.target.bits} bit"),
        ("head", "parameters", f"{count(sum(parts.values()))}, {count(sizes.trainable)} trained"),
        *(("head", part, count(number)) for part, number in parts.items() if number),
        ("memory of a process", "in all", f"{size(whole)} of {size(device.memory)}"),
        *(("memory of a process", part, size(number)) for part, number in memory.items() if number),
        (
            "data",
            "documents",
            f"{sizes.documents:,} of {sizes.prompt_tokens} + {sizes.recipe.answers.max_tokens} tokens",
        ),
        ("data", "captured states", f"{size(sizes.state_bytes)}, {state:,} B a token"),
        ("data", "passes of the target", f"{sizes.passes} with this disk budget"),
        ("FLOPs", "a captured token", f"{sizes.target.flops(sizes.document_tokens // 2):.2e}"),
        ("FLOPs", f"a trained token, {training.steps} steps", f"{sum(flops.values()):.2e}"),
        ("FLOPs", "the training", f"{sizes.training_flops:.2e}"),
        ("hours", "answers", f"{time.answers:.1f}"),
        ("hours", "capture", f"{time.capture:.1f}"),
        ("hours", "training", f"{time.training:.1f}"),
        ("hours", "in all", f"{time.total:.1f}"),
        ("disk", "read while training", f"{sizes.epochs * sizes.state_bytes / time.training / 3600 / 1e9:.2f} GB/s"),
    ]


def table(sizes: Sizes, name: str, devices: int) -> Table:
    """The plan as people read it."""
    shown = Table(
        title=f"{sizes.recipe.target.name} on {devices} x {name.upper()}",
        caption=f"Upper bounds and arithmetic. Assumed: {TRAINING_UTILISATION:.0%} of the peak in training, "
        f"{CAPTURE_UTILISATION:.0%} in capture, {DECODING_UTILISATION:.0%} of the bandwidth in answers.",
    )
    for heading in ("", "what", "value"):
        shown.add_column(heading, justify="right" if heading == "value" else "left")
    last = None
    for section, what, value in rows(sizes, name, devices):
        if section != last:
            shown.add_section()
        shown.add_row("" if section == last else section, what, value)
        last = section
    return shown


def comment(sizes: Sizes, name: str, devices: int) -> str:
    """The plan as the comment at the head of a recipe."""
    lines = [f"# On {devices} x {name.upper()}, as `aerie train draft --plan` computes it:"]
    last = None
    for section, what, value in rows(sizes, name, devices):
        lines += [] if section == last else [f"#   {section}"]
        lines.append(f"#     {what}: {value}")
        last = section
    return "\n".join(lines) + "\n"


def show(recipe_path: Path, device: str, devices: int) -> None:
    """Print the plan of a recipe file; reads no weights and runs nothing. Raises RecipeError."""
    from rich.console import Console

    if device.lower() not in DEVICES:
        raise RecipeError(f"--device {device}: not in the table; known are {', '.join(DEVICES)}")
    if devices < 1:
        raise RecipeError(f"--devices {devices}: must be at least 1")
    sizes = Sizes.of(DraftRecipe.read(recipe_path), processes=devices)
    Console().print(table(sizes, device.lower(), devices))


def count(number: float) -> str:
    """A number of parameters, in millions or billions."""
    return f"{number / 1e9:.2f} B" if number >= 1e9 else f"{number / 1e6:.2f} M"


def size(number: float) -> str:
    """Bytes in GB (1e9), or TB."""
    return f"{number / 1e12:.2f} TB" if number >= 1e12 else f"{number / 1e9:.2f} GB"
