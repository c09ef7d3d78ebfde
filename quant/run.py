# SPDX-License-Identifier: Apache-2.0
"""`aerie quantize MODEL OUT [--recipe FILE]`: a BF16 checkpoint becomes an INT4 one."""

from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

import torch

from aerie.artefacts import output_directory, provenance, write_json
from aerie.quant.architecture import Architecture
from aerie.quant.errors import AlreadyQuantisedError, QuantError
from aerie.quant.formats import FORMATS
from aerie.quant.methods.rtn import round_to_nearest
from aerie.quant.recipe import QuantRecipe
from aerie.quant.report import LayerReport, QuantReport
from aerie.quant.select import scheme_of, select_layers
from aerie.quant.stream import REPORT_NAME, Checkpoint, check_output, rewrite
from aerie.quant.weight import Int4Weight


class _Quantiser:
    """Converts tensors by name and keeps the account of what was done."""

    def __init__(self, layers: Iterable[str], recipe: QuantRecipe, advance: Callable[[], None]) -> None:
        self.selected = frozenset(layers)
        self.recipe = recipe
        self.advance = advance
        self.layers: list[LayerReport] = []
        self.parameters = self.quantised_parameters = self.quantised_bytes = self.scales = 0
        self.squared_error = self.squared_norm = 0.0

    def convert(self, name: str, tensor: torch.Tensor) -> dict[str, torch.Tensor]:
        self.parameters += tensor.numel()
        layer = name.removesuffix(".weight")
        if layer == name or layer not in self.selected:
            # Embeddings, norms and ignored layers stay 16 bit; a float32 source is rounded once, here.
            return {name: tensor.bfloat16() if tensor.dtype == torch.float32 else tensor}
        if not torch.isfinite(tensor).all():
            raise QuantError(f"MODEL: {name} is not finite; the checkpoint is damaged or its training diverged")
        weight = round_to_nearest(tensor, scheme_of(self.recipe), self.recipe.clip)
        stored = FORMATS[self.recipe.format].tensors(layer, weight)
        self._account(layer, tensor, weight, stored)
        self.advance()
        return stored

    def _account(
        self, layer: str, weight_NK: torch.Tensor, weight: Int4Weight, stored: Mapping[str, torch.Tensor]
    ) -> None:
        difference = weight.dequantise() - weight_NK.float()
        error, norm = float(difference.square().sum()), float(weight_NK.float().square().sum())
        self.squared_error += error
        self.squared_norm += norm
        self.quantised_parameters += weight_NK.numel()
        # A shape, which one format stores in 64 bits, is no weight.
        self.quantised_bytes += sum(tensor.nbytes for tensor in stored.values() if tensor.dtype != torch.int64)
        self.scales += weight.scale_NG.numel()
        self.layers.append(
            LayerReport(
                name=layer,
                shape=(weight_NK.shape[0], weight_NK.shape[1]),
                relative_error=(error / norm) ** 0.5 if norm else 0.0,
                largest_error=float(difference.abs().max()),
            )
        )

    def _resident_bytes(self, element_bytes: int) -> int:
        """Half a byte a weight, scale and offset in 16 bit each, the rest in the engine's dtype."""
        rest = self.parameters - self.quantised_parameters
        return self.quantised_parameters // 2 + 4 * self.scales + element_bytes * rest

    def report(self, source: Checkpoint, written: int) -> QuantReport:
        return QuantReport(
            recipe=self.recipe,
            bytes_before=source.weight_bytes(),
            bytes_after=written,
            resident_bytes={"float32": self._resident_bytes(4), "bfloat16": self._resident_bytes(2)},
            parameters=self.parameters,
            quantised_parameters=self.quantised_parameters,
            bits_per_quantised_weight=8 * self.quantised_bytes / self.quantised_parameters,
            relative_error=(self.squared_error / self.squared_norm) ** 0.5 if self.squared_norm else 0.0,
            layers=tuple(self.layers),
            provenance=provenance(self.recipe.model_dump(mode="json"), [], source.hashes()),
        )


def quantise(
    model: Path, out: Path, recipe: QuantRecipe | None = None, advance: Callable[[int], None] | None = None
) -> QuantReport:
    """Write the INT4 twin of a 16-bit checkpoint, with its tokenizer and quant_report.json; whole or not at all.

    Args:
        model: folder with config.json and safetensors weights.
        out: folder to create; replaced when it holds an earlier result of this function.
        recipe: what to quantise and how; None means the default recipe.
        advance: called with the number of layers to come, then with 1 less each time one is done.

    Raises:
        QuantError: what is wrong, the option's name and the fix.
    """
    recipe = recipe or QuantRecipe()
    source = Checkpoint.open(model)
    if "quantization_config" in source.config:
        raise AlreadyQuantisedError(
            f"MODEL {model}: config.json has a quantization_config already; give the 16-bit checkpoint it was made from"
        )
    check_output(model, out)
    selection = select_layers(source.shapes(), Architecture.of(source.config), recipe)
    remaining = len(selection.layers)

    def done_one() -> None:
        nonlocal remaining
        remaining -= 1
        if advance is not None:
            advance(remaining)

    if advance is not None:
        advance(remaining)
    quantiser = _Quantiser(selection.layers, recipe, done_one)
    config = dict(source.config)
    config["quantization_config"] = FORMATS[recipe.format].quantization_config(scheme_of(recipe), selection)
    if config.get("dtype", config.get("torch_dtype")) in (None, "float32"):
        config.pop("torch_dtype", None)
        config["dtype"] = "bfloat16"
    with output_directory(out) as staging:
        written = rewrite(source, staging, quantiser.convert, config)
        report = quantiser.report(source, written)
        write_json(staging / REPORT_NAME, report.model_dump(mode="json"))
    return report


def quantise_with_progress(model: Path, out: Path, recipe: QuantRecipe | None = None) -> QuantReport:
    """`quantise` with a bar on standard error, for the command line."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("quantising"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True)) as progress:
        task = progress.add_task("layers", total=None)
        total = 0

        def advance(remaining: int) -> None:
            nonlocal total
            total = max(total, remaining)
            progress.update(task, total=total, completed=total - remaining)

        return quantise(model, out, recipe, advance)
