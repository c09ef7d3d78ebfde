# SPDX-License-Identifier: Apache-2.0
"""`aerie quantize MODEL OUT [--recipe FILE]`: a 16-bit checkpoint becomes an INT4 one, whole or not at all."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from aerie.artefacts import output_directory, provenance, write_json
from aerie.quant.architecture import DRAFT, Architecture
from aerie.quant.convert import Conversion, Progress, Silent, units
from aerie.quant.errors import AlreadyQuantisedError, QuantError, UnwrittenError
from aerie.quant.formats import FORMATS
from aerie.quant.layerwise import CALIBRATION
from aerie.quant.page import write_page
from aerie.quant.parts import Parts, assemble
from aerie.quant.quality import Quality
from aerie.quant.recipe import QuantRecipe
from aerie.quant.report import DraftAcceptance, QuantReport, summarise
from aerie.quant.select import scheme_of, select_layers
from aerie.quant.stream import REPORT_NAME, Checkpoint, carry, check_output
from aerie.quant.text import Document, Tokens, fingerprint
from aerie.quant.verify import verify


def quantise(
    model: Path,
    out: Path,
    recipe: QuantRecipe | None = None,
    texts: Mapping[str, Sequence[Document]] | None = None,
    progress: Progress | None = None,
    device: str | None = None,
) -> QuantReport:
    """Write the INT4 twin of a 16-bit checkpoint, with its tokenizer and a report.

    Finished decoder layers are kept beside `out` until all are: a killed call goes on from them, to the same bytes.

    Args:
        model: folder with config.json and safetensors weights.
        out: folder to create; replaced when it holds an earlier result of this function.
        recipe: what to quantise and how; None means the default recipe.
        texts: documents by name: `calibration`, which methods but rtn need, and `held_out`, to measure quality on.
        progress: told of every layer.
        device: where layers are computed; None for a GPU if there is one.

    Raises:
        QuantError: what is wrong, the option's name and the fix.
    """
    recipe, texts = recipe or QuantRecipe(), texts or {}
    source = Checkpoint.open(model)
    if "quantization_config" in source.config:
        raise AlreadyQuantisedError(
            f"MODEL {model}: config.json has a quantization_config already; give the 16-bit checkpoint it was made from"
        )
    check_output(model, out)
    source.check_types()
    selection = select_layers(source.shapes(), _architecture(source, recipe), recipe)
    if recipe.method != "rtn" and CALIBRATION not in texts:
        raise QuantError(
            f"recipe option calibration: method: {recipe.method} looks at text and got none; add "
            "`calibration: {source: generated, prompts: {source: jsonl, path: FILE}}`, or set method: rtn"
        )
    tokens = {name: Tokens.of(documents, recipe.max_tokens) for name, documents in texts.items()}
    where = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    made_of = {"recipe": recipe.model_dump(mode="json"), "source": source.hashes(), "device": where.type}
    parts = Parts.open(out, made_of | {"texts": {name: fingerprint(one) for name, one in texts.items()}})
    scheme, stored = scheme_of(recipe), FORMATS[recipe.format]
    selected = frozenset(selection.layers)
    conversion = Conversion(source, recipe, stored, scheme, selected, parts, progress or Silent())
    quality = conversion.run(tokens, where)
    config = _config(source, stored.quantization_config(scheme, selection))
    try:
        with output_directory(out, parts.folder, replaces=REPORT_NAME) as staging:
            report = _complete(staging, conversion, config, quality)
    except OSError as error:
        raise UnwrittenError(out, error) from error
    parts.remove()
    return report


def add_acceptance(model: Path, out: Path, acceptance: DraftAcceptance) -> QuantReport:
    """Put what was measured in the engine into the report of `out`, made of `model`, and onto its page."""
    read = QuantReport.model_validate_json((out / REPORT_NAME).read_text())
    report = read.model_copy(update={"acceptance": acceptance})
    write_json(out / REPORT_NAME, report.model_dump(mode="json"))
    write_page(out, Checkpoint.open(model), report)
    return report


def _architecture(source: Checkpoint, recipe: QuantRecipe) -> Architecture:
    if DRAFT not in source.config:
        return Architecture.of(source.config)
    if recipe.method != "rtn":
        raise QuantError(
            f"recipe option method: {recipe.method} runs text through a model's layers, and a draft's also read the "
            "states of its target; set method: rtn"
        )
    if recipe.format != "compressed-tensors":
        raise QuantError("recipe option format: drafts are served from compressed-tensors; set that")
    return Architecture.draft(source.shapes())


def _complete(staging: Path, made: Conversion, config: Mapping[str, Any], quality: Quality | None) -> QuantReport:
    """Put a conversion's parts together, read them back, and report."""
    source, parts = made.source, made.parts
    names = list(units(list(source.stored)))
    written = assemble([parts.path(name) for name in names], staging, source.largest_shard())
    write_json(staging / "config.json", dict(config))
    carry(source.directory, staging)
    verify(staging, source, made.selected)
    report = _report(source, made.recipe, parts, names, written, quality)
    write_json(staging / REPORT_NAME, report.model_dump(mode="json"))
    write_page(staging, source, report)
    return report


def _config(source: Checkpoint, quantisation: Mapping[str, object]) -> dict[str, Any]:
    config = {**source.config, "quantization_config": dict(quantisation)}
    if config.get("dtype", config.get("torch_dtype")) in (None, "float32"):
        config.pop("torch_dtype", None)
        config["dtype"] = "bfloat16"
    return config


def _report(
    source: Checkpoint, recipe: QuantRecipe, parts: Parts, names: Sequence[str], written: int, quality: Quality | None
) -> QuantReport:
    parameters = sum(torch.Size(shape).numel() for shape in source.shapes().values())
    return summarise(
        recipe,
        [parts.report(name) for name in names],
        before=source.weight_bytes(),
        written=written,
        parameters=parameters,
        quality=quality,
        record=provenance(recipe.model_dump(mode="json"), [], source.hashes()),
    )
