# SPDX-License-Identifier: Apache-2.0
"""The card: what it says, that its plot is sound, and that it never appears by halves."""

import json
import xml.etree.ElementTree as ET
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import yaml

from aerie import chart
from aerie.artefacts import sha256_file
from aerie.draft_models.checkpoint import read_draft, write_draft
from aerie.draft_models.contract import DraftConfig, TargetIdentity, tensor_shapes
from aerie.trainer.draft import card
from aerie.trainer.draft.journal import Journal, numbered
from aerie.trainer.draft.served import Measurement, Tau

TAU = Tau(
    length=3.1, length_std=0.4, per_position=(0.8, 0.5, 0.4, 0.4), histogram=(2, 3, 1, 0, 4), steps=10, drafted=40,
    accepted=21, requests=3, generated=33,
)  # fmt: skip
SERVED = Measurement(
    update=20, draft_tokens=4, temperature=0.0, seed=0, overall=TAU, domains={"skin & bone": TAU, "heart": TAU}
)
SVG = "{http://www.w3.org/2000/svg}"


@pytest.fixture
def draft(tmp_path: Path, tiny_config: Callable[..., DraftConfig]) -> Path:
    identity = TargetIdentity(name="tiny-int4", config_sha256="ab" * 32, weights_sha256={}, quantisation="int4")
    config = tiny_config(target=identity, draft_vocab_size=60)
    record = {
        "commit": "abc", "versions": {"torch": "2"}, "seeds": [7], "inputs": {"capture": "1234"},
        "arguments": {"target": "/somewhere/secret/tiny-int4", "training": {"seed": 7}},
        "data": {"documents": 1000},
    }  # fmt: skip
    write_draft(tmp_path / "draft", config, {n: torch.ones(s) for n, s in tensor_shapes(config).items()}, record)
    return tmp_path / "draft"


@pytest.fixture
def journal(tmp_path: Path) -> Journal:
    with Journal(tmp_path / "work", log=lambda _: None) as opened:
        for update in range(1, 21):
            opened.write(update, {"training/loss": 1 / update})
        opened.write(10, numbered("simulated/tau", [1.5, 2.0]))
        opened.write(20, numbered("simulated/tau", [1.7, 2.4]))
    return opened


def test_a_published_head_is_the_head_and_its_card(draft: Path, journal: Journal, tmp_path: Path) -> None:
    card.publish(draft, tmp_path / "out", journal.entries(), [SERVED])
    assert torch.equal(read_draft(tmp_path / "out")[1]["fc.weight"], read_draft(draft)[1]["fc.weight"])
    told = json.loads((tmp_path / "out" / card.CARD).read_text())
    assert told["served"][0]["overall"]["length"] == TAU.length
    assert told["scalars"]["simulated/tau/2"] == [[10, 2.0], [20, 2.4]]
    assert told["recipe"]["training"] == {"seed": 7}
    names = {path.name for path in (tmp_path / "out").iterdir()} - {card.CARD}
    assert told["files"] == {name: sha256_file(tmp_path / "out" / name) for name in names}


def test_the_front_matter_is_hugging_face_s_and_no_path_is_told(draft: Path, journal: Journal) -> None:
    card.publish(draft, draft, journal.entries(), [SERVED])
    text = (draft / card.README).read_text()
    front = yaml.safe_load(text.split("---\n")[1])
    assert (front["library_name"], front["base_model"]) == ("vllm", "tiny-int4")
    assert "speculative-decoding" in front["tags"]
    assert "| heart | 3.100 | 0.400 | 3 | 10 |" in text
    assert "secret" not in text + (draft / card.CARD).read_text()


def test_publishing_again_replaces_the_card(draft: Path, journal: Journal) -> None:
    card.publish(draft, draft)
    assert "Not measured in the engine." in (draft / card.README).read_text()
    card.publish(draft, draft, journal.entries(), [SERVED])
    assert "at temperature 0" in (draft / card.README).read_text()


def test_a_card_that_cannot_be_made_leaves_the_folder_as_it_was(draft: Path) -> None:
    before = {path.name: path.read_bytes() for path in draft.iterdir()}
    (draft / "provenance.json").write_text("{")
    with pytest.raises(ValueError, match="property name"):
        card.publish(draft, draft)
    assert {path.name for path in draft.iterdir()} == set(before)
    assert [path.name for path in draft.parent.iterdir() if path.name.startswith(".")] == []


def test_the_plot_is_sound_xml_with_every_domain_position_and_curve(journal: Journal) -> None:
    root = ET.fromstring(chart.draw(card.panels(journal.entries(), [SERVED])))
    words = {element.text for element in root.iter(f"{SVG}text")}
    assert {"skin & bone", "heart", "all", "token 4", "simulated, K = 2", "in vLLM, K = 4", "updates"} <= words
    assert len(list(root.iter(f"{SVG}polyline"))) == 2 + 2 + 1 + 1
    width, height = (float(root.attrib[name]) for name in ("width", "height"))
    for mark in root.iter(f"{SVG}rect"):
        assert float(mark.attrib["width"]) <= width
        assert float(mark.attrib.get("y", 0)) <= height


@pytest.mark.parametrize("values", [[0.0], [3.0, 3.0], [-1.0, 1.0], [1e-9, 2e-9], [0.1, 12345.0]])
def test_axes_enclose_any_values(values: list[float]) -> None:
    panel = chart.Lines("t", "x", "y", [chart.Line("a", list(enumerate(values)))])
    root = ET.fromstring(chart.draw([panel]))
    drawn = [point.split(",") for line in root.iter(f"{SVG}polyline") for point in line.attrib["points"].split()]
    drawn += [[dot.attrib["cx"], dot.attrib["cy"]] for dot in root.iter(f"{SVG}circle")]
    assert len(drawn) == len(values) + 2, "the curve, and its sample in the legend"
    for x, y in drawn:
        assert 0 <= float(x) <= chart.WIDTH
        assert 0 <= float(y) <= panel.height(chart.WIDE)
