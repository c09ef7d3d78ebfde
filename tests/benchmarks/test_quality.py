# SPDX-License-Identifier: Apache-2.0
import json
import math
from pathlib import Path
from types import SimpleNamespace

import pytest

from aerie.benchmarks.errors import BenchmarkError
from aerie.benchmarks.losslessness.temperature import figures_of_record
from aerie.benchmarks.losslessness.total_variation import TotalVariationTest
from aerie.benchmarks.options import DEMO_MODEL
from aerie.benchmarks.quality.held_out_text import summary
from aerie.benchmarks.quality.whole import SMALL, Subject, reported, run
from aerie.draft_models.offline import Score


def test_perplexity_is_the_inverse_of_the_tokens_mean_probability() -> None:
    quality = summary([Score(math.log(0.5), first=True), Score(math.log(0.125), first=False)])
    assert quality.perplexity == pytest.approx(4)
    assert (quality.tokens, quality.top1) == (2, 0.5)


def test_what_quantising_told_is_found_in_the_report_or_on_the_card(tmp_path: Path) -> None:
    model = tmp_path / "main"
    model.mkdir()
    assert reported(model) is None
    (tmp_path / "card.json").write_text(json.dumps({"quantisation": {"quality": {"kl": 1}}}))
    assert reported(model) == {"kl": 1}
    (model / "quant_report.json").write_text(json.dumps({"quality": {"kl": 2}}))
    assert reported(model) == {"kl": 2}
    shipped = reported(DEMO_MODEL)
    assert shipped is not None
    assert shipped["tokens"] == 6454


def test_a_kept_test_gives_the_figures_it_gave_when_it_was_made() -> None:
    test = TotalVariationTest(
        statistic=0.02, null_mean=0.01, critical=0.03, p_value=0.4, level=0.01, detectable=None, detectable_leak=None,
        power=0.95,
    )  # fmt: skip
    kept = json.loads(json.dumps({**test.model_dump(mode="json"), "prompts": 2, "samples": 100}))
    figures = {"t1_total_variation": 0.02, "t1_total_variation_null": 0.01, "t1_p_value": 0.4}
    assert figures_of_record(kept) == figures


def test_a_draft_of_another_model_is_refused_before_anything_is_measured(pair: SimpleNamespace, tmp_path: Path) -> None:
    with pytest.raises(BenchmarkError, match="--draft"):
        run(tmp_path / "out.json", Subject(model=DEMO_MODEL, draft=pair.draft), SMALL, tmp_path)
    assert not (tmp_path / "out.json").exists()
