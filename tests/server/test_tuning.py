# SPDX-License-Identifier: Apache-2.0
"""What `--speculation` makes of tuning files: one that fits, another machine's, a broken one, none."""

import json
from collections.abc import Callable
from datetime import date
from pathlib import Path

import httpx
import pytest

from aerie.draft_models.vllm_worker import RestingWorker
from aerie.server.app import create_app
from aerie.server.engine import engine_flags, speculative_config
from aerie.server.errors import BadOption
from aerie.server.house import House
from aerie.server.plan import Plan, make_plan
from aerie.server.settings import ServeSettings
from aerie.server.sources import misspelt
from aerie.server.tuning import Range, Tuning, TuningError, default_path, fingerprint

MakeCheckpoint = Callable[..., Path]
SCHEDULE: tuple[Range, ...] = ((1, 4, 5), (5, 12, 3), (13, 4096, 0))
SAID = "K = 5 up to 4 requests, 3 up to 12, then 0"
DAY = date(2026, 11, 28)


@pytest.fixture
def planned(make_checkpoint: MakeCheckpoint) -> Callable[..., Plan]:
    """`planned(speculation="auto")` the plan of a model with a draft."""
    model, draft = make_checkpoint("m"), make_checkpoint("d")

    def plan(**values: object) -> Plan:
        return make_plan(ServeSettings.model_validate({"model": str(model), "draft": str(draft), **values}))

    return plan


def stored(plan: Plan, path: Path | None = None, schedule: tuple[Range, ...] = SCHEDULE, **changes: object) -> Path:
    """A tuning for a plan, or for something that differs from it."""
    setup = plan.setup.model_copy(update=changes)
    file = path or default_path(plan.setup)
    Tuning(measured=DAY, setup=setup, schedule=schedule, predictions=(), provenance={}).write(file)
    return file


def test_without_a_tuning_k_is_fixed_and_the_way_to_one_is_told(planned: Callable[..., Plan]) -> None:
    made = planned()
    assert made.speculation.text == "no tuning for this machine and these checkpoints; run `aerie tune`; fixed K = 4"
    assert speculative_config(made) == {"model": str(made.draft), "num_speculative_tokens": 4}


def test_a_stored_tuning_is_used(planned: Callable[..., Plan]) -> None:
    stored(planned())
    made = planned()
    assert made.speculation.text == f"tuned on 2026-11-28: {SAID}"
    config = speculative_config(made)
    assert config is not None
    assert config["num_speculative_tokens"] == 5
    assert config["num_speculative_tokens_per_batch_size"] == [[1, 4, 5], [5, 12, 3], [13, 4096, 0]]


def test_the_draft_may_rest_where_a_schedule_has_no_use_for_it(planned: Callable[..., Plan]) -> None:
    assert "--worker-cls" not in engine_flags(planned())
    stored(planned())
    assert engine_flags(planned())["--worker-cls"] == RestingWorker.__module__ + "." + RestingWorker.__qualname__
    stored(planned(), schedule=((1, 4, 5), (5, 4096, 1)))
    assert "--worker-cls" not in engine_flags(planned())


async def test_the_status_tells_the_schedule(planned: Callable[..., Plan]) -> None:
    stored(planned())
    made = planned()
    house = House(made.settings, positions=made.speculation.draft_tokens)
    house.plan = made
    async with httpx.AsyncClient(
        transport=httpx.ASGITransport(create_app(made.settings, house)), base_url="http://localhost"
    ) as http:
        told = (await http.get("/aerie/status")).json()
    assert told["speculation"] == f"tuned on 2026-11-28: {SAID}"
    assert told["draft_schedule"] == [list(one) for one in SCHEDULE]


def test_a_given_number_wins_over_a_stored_tuning_and_fixed_never_looks(planned: Callable[..., Plan]) -> None:
    stored(planned())
    given = planned(draft_tokens=2)
    assert given.speculation.text == "--draft-tokens is given, and wins over a stored tuning; fixed K = 2"
    assert planned(speculation="fixed").speculation.schedule is None
    assert planned(speculation="fixed").speculation.draft_tokens == 4


def test_data_parallelism_has_no_schedules(planned: Callable[..., Plan]) -> None:
    file = stored(planned())
    parallel = {"data_parallel_size": 2}
    assert "data parallelism" in planned(engine_options=parallel).speculation.text
    with pytest.raises(BadOption, match="data parallelism; choose fixed"):
        planned(engine_options=parallel, speculation=str(file))


@pytest.mark.parametrize("text", ["", "{", "[]", '{"form": 2}', "null"])
def test_a_damaged_file_in_the_folder_never_stops_a_server(planned: Callable[..., Plan], text: str) -> None:
    path = default_path(planned().setup)
    path.parent.mkdir(parents=True)
    path.write_text(text)
    made = planned()
    assert made.speculation.draft_tokens == 4
    assert made.speculation.warning is not None
    assert "is no tuning file" in made.speculation.warning
    path.unlink()
    path.mkdir()
    assert "cannot read" in str(planned().speculation.warning)


def test_another_setup_s_file_in_the_folder_is_ignored(planned: Callable[..., Plan]) -> None:
    stored(planned(), cores=1024)
    made = planned()
    assert made.speculation.schedule is None
    assert "not 1024" in str(made.speculation.warning)


def test_a_named_file_must_fit(planned: Callable[..., Plan], tmp_path: Path) -> None:
    file = stored(planned(), tmp_path / "t.json")
    assert planned(speculation=str(file)).speculation.schedule == SCHEDULE
    with pytest.raises(
        BadOption, match=r"--speculation: .*t.json was tuned for something else: dtype is bfloat16, not "
    ):
        planned(speculation=str(file), dtype="bfloat16")
    with pytest.raises(BadOption, match="--draft-tokens is given too"):
        planned(speculation=str(file), draft_tokens=3)
    with pytest.raises(BadOption, match="there is no draft"):
        planned(speculation=str(file), draft="none")
    with pytest.raises(BadOption, match=r"cannot read .* name a file that `aerie tune` wrote"):
        planned(speculation=str(tmp_path / "nowhere.json"))


def test_other_weights_need_another_tuning(planned: Callable[..., Plan]) -> None:
    stored(planned())
    made = planned()
    assert made.draft is not None
    (made.draft / "model.safetensors").write_bytes(b"trained again")
    assert planned().speculation.schedule is None


def test_a_fingerprint_sees_names_sizes_and_samples(make_checkpoint: MakeCheckpoint) -> None:
    folder = make_checkpoint("big")
    weights = folder / "model.safetensors"
    seen = {fingerprint(folder)}
    for content in (bytes(1 << 22), b"\1" + bytes((1 << 22) - 1), bytes((1 << 22) - 1) + b"\1", bytes((1 << 22) + 1)):
        weights.write_bytes(content)
        seen.add(fingerprint(folder))
    weights.rename(folder / "other.safetensors")
    seen.add(fingerprint(folder))
    assert len(seen) == 6


def test_a_tuning_that_never_drafts_serves_without_the_draft(planned: Callable[..., Plan]) -> None:
    stored(planned(), schedule=((1, 4096, 0),))
    made = planned()
    assert made.draft is None
    assert speculative_config(made) is None
    assert made.speculation.text == "tuned on 2026-11-28: K = 0"


@pytest.mark.parametrize(
    "schedule",
    [[], [[2, 4, 1]], [[1, 4, 1], [6, 8, 0]], [[1, 4, 1], [4, 8, 0]], [[1, 0, 1]], [[1, 4, 17]], [[1, 4, -1]]],
)
def test_a_schedule_has_no_gaps(planned: Callable[..., Plan], tmp_path: Path, schedule: list[list[int]]) -> None:
    file = stored(planned(), tmp_path / "t.json")
    file.write_text(json.dumps({**json.loads(file.read_text()), "schedule": schedule}))
    with pytest.raises(TuningError, match="schedule"):
        Tuning.read(file)


def test_a_file_comes_back_as_it_was_written(planned: Callable[..., Plan], tmp_path: Path) -> None:
    file = stored(planned(), tmp_path / "t.json")
    again = tmp_path / "again.json"
    Tuning.read(file).write(again)
    assert again.read_bytes() == file.read_bytes()


def test_where_tunings_lie(planned: Callable[..., Plan], tmp_path: Path) -> None:
    setup = planned().setup
    assert default_path(setup, {"AERIE_TUNING": str(tmp_path)}).parent == tmp_path
    assert default_path(setup, {"XDG_DATA_HOME": str(tmp_path)}).parent == tmp_path / "aerie/tuning"
    assert default_path(setup, {}).parent == Path.home() / ".local/share/aerie/tuning"
    assert misspelt({"AERIE_TUNING": "x"}) == []
