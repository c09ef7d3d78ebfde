# SPDX-License-Identifier: Apache-2.0
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from aerie.benchmarks.acceptance.by_domain import Settings, figures, run, slug, standard_error
from aerie.benchmarks.acceptance.variants import DEMO, parse_all
from aerie.benchmarks.errors import BenchmarkError
from aerie.benchmarks.points import Record
from aerie.benchmarks.results_file import ResultFile
from aerie.draft_models.acceptance import AcceptanceCounts


def record(variant: str, domain: str, *requests: list[int]) -> Record:
    histogram = [sum(column) for column in zip(*requests, strict=True)]
    steps, accepted = sum(histogram), sum(index * count for index, count in enumerate(histogram))
    return {
        "variant": variant,
        "domain": domain,
        "accepted": accepted,
        "drafted": 2 * steps,
        "histogram_by_request": [list(one) for one in requests],
    }


def test_figures_are_pooled_over_steps_by_variant_and_domain() -> None:
    records = [
        record("int4-plain", "inquiry", [1, 1, 2], [0, 0, 2]),
        record("int4-plain", "Rôle play!", [4, 0, 0]),
        record("demo", "inquiry", [0, 0, 1]),
    ]
    assert figures(records) == {
        "acceptance_length_int4_plain": 1.9,
        "acceptance_length_int4_plain_std": 0.5444,
        "acceptance_length_int4_plain_inquiry": 2.5,
        "acceptance_length_int4_plain_inquiry_std": 0.3333,
        "acceptance_length_int4_plain_r_le_play": 1.0,
        "acceptance_position_1_int4_plain": 0.5,
        "acceptance_position_2_int4_plain": 0.4,
        "acceptance_rate_int4_plain": 0.45,
        "acceptance_length_demo": 3.0,
        "acceptance_length_demo_inquiry": 3.0,
        "acceptance_position_1_demo": 1.0,
        "acceptance_position_2_demo": 1.0,
        "acceptance_rate_demo": 1.0,
    }
    assert slug("...") == "other"


def test_the_standard_error_is_that_of_a_mean_where_all_answers_are_of_one_length() -> None:
    requests = [AcceptanceCounts(histogram=(2 - many, many), drafted=2) for many in (0, 1, 2, 1)]
    # Lengths 1, 1.5, 2, 1.5: their sample deviation over the root of 4.
    assert standard_error(requests) == pytest.approx((0.5**2 * 2 / 3) ** 0.5 / 2)
    assert standard_error(requests[:1]) is None


@pytest.mark.parametrize(
    ("value", "said"),
    [
        ("plain", "give NAME=MODEL,DRAFT"),
        ("plain=a", "give NAME=MODEL,DRAFT"),
        ("=a,b", "give NAME=MODEL,DRAFT"),
        ("Plain=a,b", "must be of a-z, 0-9 and single hyphens"),
        ("plain=a,b", "a is no checkpoint; name a folder with a config.json"),
    ],
)
def test_a_variant_that_cannot_be_measured_is_refused_by_its_option(value: str, said: str) -> None:
    with pytest.raises(BenchmarkError, match=f"--variant {value}: .*{said}"):
        parse_all([value])


def test_without_a_variant_it_is_the_demo_and_names_stand_once() -> None:
    assert parse_all([]) == [DEMO]
    one = f"a={DEMO.model},{DEMO.draft}"
    with pytest.raises(BenchmarkError, match="a stands twice"):
        parse_all([one, one])


def test_a_draft_of_another_model_is_refused(pair: SimpleNamespace) -> None:
    with pytest.raises(BenchmarkError, match="--variant a: --draft"):
        parse_all([f"a={DEMO.model},{pair.draft}"])


def test_the_command_line_refuses_in_one_line_and_writes_nothing(tmp_path: Path) -> None:
    out = tmp_path / "out.json"
    bad = tmp_path / "bad.jsonl"
    bad.write_text('{"turns": ["a"]}\n{"turns": 3}\n')
    command = [sys.executable, "-P", "-m", "aerie", "bench", "acceptance", "--out", str(out), "--prompts", str(bad)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith("aerie: error: ")
    assert "line 2 (Spec-Bench, SPEED-Bench or MT-Bench): `turns`" in done.stderr
    assert done.stderr.count("\n") == 1
    assert not out.exists()


@pytest.mark.engine
@pytest.mark.filterwarnings("default")
def test_measured_domains_are_kept_and_another_run_needs_no_engine(pair: SimpleNamespace, tmp_path: Path) -> None:
    prompts = tmp_path / "prompts.jsonl"
    prompts.write_text('{"messages": [{"role": "user", "content": "w3"}], "domain": "a"}\n')
    main = tmp_path / "main"
    shutil.copytree(pair.main, main)
    settings = Settings(draft_tokens=2, count=1, prompts=prompts)
    variants = [f"known={main},{pair.draft}"]
    run(tmp_path / "first.json", variants, settings, tmp_path / "work")
    first = ResultFile.read(tmp_path / "first.json")
    # The models were made for it: each step accepts the first token drafted and no other.
    assert first.figures["acceptance_length_known"] == first.figures["acceptance_length_known_a"] == 2
    assert first.runs[0].measured["positions"] == [1, 0]
    assert str(tmp_path) not in (tmp_path / "first.json").read_text()
    run(tmp_path / "again.json", variants, settings, tmp_path / "work")
    assert ResultFile.read(tmp_path / "again.json").figures == first.figures
