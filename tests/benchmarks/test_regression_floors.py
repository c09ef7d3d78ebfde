# SPDX-License-Identifier: Apache-2.0
from pathlib import Path

import pytest

from aerie.artefacts import sha256_tree
from aerie.benchmarks.errors import BenchmarkError
from aerie.benchmarks.options import DEMO_DRAFT, DEMO_MODEL
from aerie.benchmarks.regression.floors import COMMITTED, Asked, Bound, Floors
from aerie.benchmarks.regression.measure import DOMAINS
from aerie.benchmarks.regression.run import run
from aerie.benchmarks.results_file import Provenance

PROVENANCE = Provenance(commit="abc", versions={}, arguments={}, seeds=[0], inputs={}, machine={})
FLOORS = Floors(
    provenance=PROVENANCE,
    asked=Asked(seed=0, draft_tokens=4, prompts=1, max_tokens=8, documents=1),
    bounds={
        "acceptance_length": Bound(kind="least", measured=4, margin=0.05),
        "perplexity": Bound(kind="most", measured=1.04, margin=0.01),
    },
)


@pytest.mark.parametrize("measured", [(4, 1.04), (3.81, 1.05), (5, 1.0)])
def test_what_is_within_its_margin_or_better_passes(measured: tuple[float, float]) -> None:
    length, perplexity = measured
    assert FLOORS.faults({"acceptance_length": length, "perplexity": perplexity, "more": 0}) == []


def test_what_fell_out_is_named_with_how_far() -> None:
    assert FLOORS.faults({"acceptance_length": 3.7, "perplexity": 1.06}) == [
        "acceptance_length is 3.7000, 0.1000 below its floor of 3.8000 (-7.5% of 4.0000)",
        "perplexity is 1.0600, 0.0096 above its ceiling of 1.0504 (+1.9% of 1.0400)",
    ]


def test_a_figure_that_was_not_measured_does_not_pass() -> None:
    assert FLOORS.faults({"acceptance_length": 4}) == ["perplexity was not measured"]
    assert FLOORS.faults({"acceptance_length": float("nan"), "perplexity": 1}) == [
        "acceptance_length is nan, nan below its floor of 3.8000 (+nan% of 4.0000)"
    ]


def test_recorded_anew_the_margins_stay(tmp_path: Path) -> None:
    anew = FLOORS.recorded({"acceptance_length": 5, "perplexity": 1.02, "more": 0}, PROVENANCE)
    anew.write(tmp_path / "floors.json")
    assert Floors.read(tmp_path / "floors.json") == anew
    assert anew.bounds["acceptance_length"] == Bound(kind="least", measured=5, margin=0.05)
    assert anew.bounds.keys() == FLOORS.bounds.keys()


@pytest.mark.parametrize("text", ["{", "[]", '{"bounds": {}}'])
def test_a_broken_file_is_refused_before_an_engine_starts(tmp_path: Path, text: str) -> None:
    path = tmp_path / "floors.json"
    path.write_text(text)
    with pytest.raises(BenchmarkError, match=r"--floors .*floors\.json: .*restore the file"):
        run(DEMO_MODEL, DEMO_DRAFT, path, None, record=False)
    with pytest.raises(BenchmarkError, match=r"--floors .*absent\.json"):
        Floors.read(tmp_path / "absent.json")


def test_the_committed_floors_bound_every_domain_and_the_quality_of_what_is_shipped() -> None:
    floors = Floors.read(COMMITTED)
    domains = {f"acceptance_length_{domain}" for domain in DOMAINS}
    assert floors.bounds.keys() == {"acceptance_length", *domains, "parse_rate", "perplexity", "top1"}
    assert all(0 < bound.margin <= 0.1 for bound in floors.bounds.values())
    shipped = {f"model/{name}": digest for name, digest in sha256_tree(DEMO_MODEL).items()}
    shipped |= {f"draft/{name}": digest for name, digest in sha256_tree(DEMO_DRAFT).items()}
    assert floors.provenance.inputs == shipped, "other checkpoints than the floors': `aerie bench check --record`"
