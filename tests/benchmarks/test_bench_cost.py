# SPDX-License-Identifier: Apache-2.0
"""`aerie bench cost` on steps whose cost is known."""

import pytest

from aerie.benchmarks.errors import BenchmarkError
from aerie.benchmarks.results_file import Run
from aerie.benchmarks.serving.cost import FIRST, Step, summary
from aerie.benchmarks.serving.cost_figures import figures

BASE_MS, ROW_MS, TOKEN_MS, OTHER_MS = 10.0, 0.5, 2.0, 1.0


def steps(count: int, batch: int, k: int) -> list[Step]:
    """A prompt's step, then those of the whole batch, then one of its last request."""
    span = BASE_MS + ROW_MS * batch * (k + 1) + TOKEN_MS * max(1, k) + OTHER_MS
    made = [Step(0.0, 100, 50.0, 5.0, 1)]
    for place in range(count):
        verify = BASE_MS + ROW_MS * batch * (k + 1)
        made.append(Step(0.1 + place * span / 1000, batch * (k + 1), verify, TOKEN_MS * max(1, k), max(1, k)))
    return [*made, Step(0.1 + count * span / 1000, k + 1, 1.0, 1.0, 1)]


def test_only_steps_of_the_whole_batch_count() -> None:
    found = summary(steps(FIRST + 6, batch=4, k=3), 4, 3)
    assert (found["rows"], found["steps"], found["draft_passes"]) == (16, 6, 3)
    assert (found["verify_ms"], found["draft_ms"]) == (18.0, 6.0)
    assert found["step_ms"] == pytest.approx(25.0)
    assert found["other_ms"] == pytest.approx(OTHER_MS)
    with pytest.raises(BenchmarkError, match="only 2 steps had all of 4 requests with K = 3"):
        summary(steps(FIRST + 2, batch=4, k=3), 4, 3)


def test_figures_find_what_a_row_and_a_drafted_token_cost() -> None:
    runs = [
        Run(benchmark="cost", measured={**summary(steps(FIRST + 6, batch, k), batch, k), "index": index})
        for index in range(2)
        for batch in (1, 4)
        for k in (0, 1, 4)
    ]
    found = figures(runs)
    assert found["verify_row_ms"] == pytest.approx(ROW_MS, rel=1e-3)
    assert found["verify_base_ms"] == pytest.approx(BASE_MS, rel=1e-3)
    assert found["draft_token_ms_c4"] == pytest.approx(TOKEN_MS, rel=1e-3)
    assert found["break_even_k4_c1"] == pytest.approx((10 + 2.5 + 8 + 1) / (10 + 0.5 + 1), rel=1e-3)
    assert found["draft_share_k4_c1"] == pytest.approx(8 / 21.5, rel=1e-3)
    assert "draft_share_k0_c1" not in found
