"""``limbeck evaluate`` of segmenters."""

import json
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from limbeck.data.options import DataOptions
from limbeck.errors import UserError
from limbeck.models.finished import read_record
from limbeck.recipes.look.evaluate import evaluate, report
from limbeck.recipes.look.evaluate_maps import scenes_of
from limbeck.recipes.look.options import EvaluateConfig
from limbeck.recipes.train.segment import segment
from tests.recipes.scenes import NAMES, draw_scenes, segment_config


@pytest.fixture(scope="module")
def poor(scenes, tmp_path_factory):
    """The run of a segmenter that has learnt for two steps."""
    config = segment_config(scenes, tmp_path_factory.mktemp("poor") / "run")
    return segment(replace(config, train=replace(config.train, epochs=1)))


def test_scores_with_their_interval_and_by_class(scenes, segmenter, poor, tmp_path):
    config = EvaluateConfig(
        student=(str(segmenter),), baseline=(str(poor),), out=tmp_path / "scores",
        data=DataOptions(root=str(scenes), holdout_ratio=0.25, num_workers=0), measure_speed=False,
    )  # fmt: skip
    found = evaluate(config)
    own = found.results["student"]
    assert own.mean == pytest.approx(read_record(segmenter)[1]["scores"]["miou"])
    assert own.low <= own.mean <= own.high and tuple(own.iou) == NAMES
    assert found.verdict.kind == "helped"
    said = report(found)
    assert found.verdict.why in said and "| box " in said
    kept = json.loads((tmp_path / "scores" / "scores.json").read_text())
    assert set(kept["results"]["student"]["iou"]) == set(NAMES)
    assert (tmp_path / "scores" / "table.md").read_text() == said + "\n"


def test_classes_go_by_their_names_and_masks_of_other_scenes_lie_with_them(segmenter, tmp_path):
    """The run's own order counts, whatever that of the scenes."""
    record = read_record(segmenter)[1]["config"]["data"]
    own = {**record, "masks": "/elsewhere/masks", "layout": "folders"}
    there, here = DataOptions(root="b"), DataOptions(root=record["root"])
    assert scenes_of(there, own).masks == "" and scenes_of(here, own).masks == own["masks"]
    root = draw_scenes(tmp_path / "scenes", 8)
    turned = tuple(reversed(NAMES))
    for file in (root / "masks").glob("*.png"):
        with Image.open(file) as mask:
            values = np.asarray(mask)
        Image.fromarray(np.where(values < 2, 1 - values, values).astype(np.uint8)).save(file)
    (root / "classes.txt").write_text("".join(f"{name}\n" for name in turned))
    data = DataOptions(root=str(root), holdout_ratio=0.5, num_workers=0)
    config = EvaluateConfig(student=(str(segmenter),), data=data, measure_speed=False)
    found = evaluate(config).results["student"]
    assert tuple(found.iou) == NAMES and found.mean > 0.5


def test_what_does_not_fit_is_told(scenes, segmenter, student, tmp_path):
    data = DataOptions(root=str(scenes), num_workers=0)
    config = EvaluateConfig(student=(str(segmenter),), data=data, measure_speed=False)
    with pytest.raises(UserError, match="num_labels has no effect on a segmenter"):
        evaluate(replace(config, num_labels=(1,)))
    with pytest.raises(UserError, match="is no segmenter"):
        evaluate(replace(config, baseline=(str(student),)))
