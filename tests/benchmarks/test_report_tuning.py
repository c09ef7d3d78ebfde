# SPDX-License-Identifier: Apache-2.0
"""What a report says of a tuning."""

from tests.benchmarks.made_results import tuned

from aerie.benchmarks.report.document import Paragraph, pictures
from aerie.benchmarks.report.sections import tuning
from aerie.benchmarks.results_file import Run


def test_a_tuning_tells_the_proof_and_the_k_with_the_best_prediction() -> None:
    found = tuning.findings(tuned())
    assert found is not None
    assert "at least 0.991×" in found.sentences[0]
    assert "1.80×" in found.sentences[0]
    assert found.sentences[1] == "The prediction favours 4 tokens at 1 in flight and none at 8."
    assert "5.0%" in found.sentences[2]
    assert {one.name for one in pictures(found.blocks)} == {"tuned-against-best", "tuned-k", "step-times", "prediction"}


def test_a_tunings_own_schedule_is_told_where_its_result_holds_it() -> None:
    ranges = [
        Run(benchmark="tune.schedule", measured={"first": first, "last": last, "draft_tokens": k})
        for first, last, k in ((9, 99, 0), (1, 2, 5), (3, 8, 3))
    ]
    found = tuning.findings(tuned().model_copy(update={"runs": [*tuned().runs, *ranges]}))
    assert found is not None
    assert found.sentences[1] == "It drafts 5 tokens at 1 in flight and 3 at 8."


def test_step_times_have_a_curve_for_each_k_and_one_without_a_draft() -> None:
    panel = tuning.step_times([one.measured for one in tuned().runs if one.benchmark == "tune.step"])
    found = {line.name: [y for _, y in line.points] for line in panel.lines}
    assert found == {"no draft": [10.0, 10.0], "K = 0": [10.0, 10.0], "K = 4": [14.0, 42.0]}


def test_trials_are_told_by_load_with_the_chosen_k_in_bold() -> None:
    tries = [
        Run(
            benchmark="tune.trial",
            measured={"concurrency": level, "draft_tokens": k, "output_tokens": 100, "duration_s": 100 / rate},
        )
        for level, k, rate in ((8, 2, 150.0), (8, 2, 100.0), (8, 0, 130.0), (1, 2, 90.0), (1, 4, 80.0))
    ]
    table = tuning.trials([one.measured for one in tries], {1: 2, 8: 0})
    assert table.head == ["in flight", "K = 0", "K = 2", "K = 4"]
    assert table.rows == [["1", "–", "**90**", "80"], ["8", "**130**", "120", "–"]]
    found = tuning.findings(tuned().model_copy(update={"runs": [*tuned().runs, *tries]}))
    assert found is not None
    assert Paragraph(tuning.TRIED) in found.blocks
