"""``limbeck predict``: masks, pictures and lines for any images, and going on where it stopped."""

import json
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from limbeck.errors import UserError
from limbeck.recipes.ship import answering
from limbeck.recipes.ship.places import open_files
from limbeck.recipes.ship.predict import PredictConfig, ShownCropOptions, predict, report
from tests.recipes.scenes import draw_scenes


def lines_of(folder):
    return [json.loads(line) for line in (folder / "predictions.jsonl").read_text().splitlines()]


def test_masks_in_the_image_s_size_and_pictures(scenes, segmenter, tmp_path):
    config = PredictConfig(
        network=str(segmenter), images=(str(scenes / "images"),), out=tmp_path / "said"
    )
    found = predict(config)
    assert (found.num_images, found.num_skipped) == (24, 0)
    first = lines_of(found.out)[0]
    assert first["image"] == "000.png" and first["size"] == [48, 40]
    assert sum(first["shares"].values()) == pytest.approx(1)
    hits = []
    for line in lines_of(found.out):
        with (
            Image.open(found.out / line["mask"]) as mask,
            Image.open(scenes / "masks" / line["image"]) as truth,
        ):
            assert mask.mode == "P" and mask.size == (48, 40)
            hits.append((np.array(mask) == truth).mean())
    assert np.mean(hits) > 0.8
    with Image.open(found.out / "pictures" / "000.png") as picture:
        assert picture.width == 48 and picture.height > 40  # the legend is below
    assert "24 images" in report(found)


def test_it_goes_on_where_it_stopped(scenes, segmenter, tmp_path, monkeypatch):
    config = PredictConfig(
        network=str(segmenter), images=(str(scenes / "images"),), out=tmp_path / "said",
        pictures=False,
    )  # fmt: skip
    real, count = answering.save_png, []

    def stops(*given):
        count.append(1)
        if len(count) == 5:
            raise KeyboardInterrupt
        real(*given)

    monkeypatch.setattr(answering, "save_png", stops)
    with pytest.raises(KeyboardInterrupt):
        predict(config)
    assert len(lines_of(tmp_path / "said")) == 4
    with (tmp_path / "said" / "predictions.jsonl").open("a") as file:
        file.write('{"image": "00')  # as kill -9 leaves it
    predict(config)
    assert len(count) == 5 + 20
    assert len({line["image"] for line in lines_of(tmp_path / "said")}) == 24
    assert not (tmp_path / "said" / "pictures").exists()


def test_classes_with_probabilities(images, classifier, tmp_path):
    (tmp_path / "broken.png").write_bytes(b"no image")
    places = (str(images / "red" / "000.png"), str(images / "blue" / "00[12].png"),
              str(tmp_path / "broken.png"))  # fmt: skip
    found = predict(PredictConfig(network=str(classifier), images=places, out=tmp_path / "said"))
    assert (found.num_images, found.num_skipped) == (3, 1)
    for line in lines_of(found.out):
        answers = list(line["classes"].items())
        assert sum(share for _, share in answers) == pytest.approx(1, abs=1e-5)
        assert answers[0][0] in line["image"]
        assert [share for _, share in answers] == sorted(line["classes"].values(), reverse=True)
    assert "1 could not be read" in report(found)


def test_images_of_one_name_in_several_folders_keep_apart(tmp_path):
    for name in ("a", "b"):
        draw_scenes(tmp_path / name, 1)
    (tmp_path / "a/images/000.jpg").write_bytes((tmp_path / "a/images/000.png").read_bytes())
    found = open_files((str(tmp_path / "a/images"), str(tmp_path / "b/images")))
    keys = [found.key(index) for index in range(len(found))]
    assert keys == ["a/images/000.jpg", "a/images/000.png", "b/images/000.png"]


@pytest.mark.parametrize(
    ("network", "images", "message"),
    [
        ("", ("x",), "run: limbeck predict RUN IMAGES"),
        ("nowhere", ("x",), "nowhere does not exist"),
        (".", ("nowhere.jpg",), "nowhere.jpg does not exist"),
    ],
)
def test_what_is_missing_is_named(network, images, message):
    with pytest.raises(UserError, match=message):
        predict(PredictConfig(network=network, images=images))


def test_an_encoder_has_nothing_to_say(student, images, tmp_path):
    with pytest.raises(UserError, match="knows no classes"):
        predict(PredictConfig(network=str(student), images=(str(images),), out=tmp_path / "said"))
    with pytest.raises(UserError, match="There are no images in"):
        open_files((str(tmp_path / "*.jpg"),))


def test_images_of_another_folder_are_not_taken_for_these(scenes, segmenter, tmp_path):
    first = PredictConfig(
        network=str(segmenter), images=(str(scenes / "images" / "000.png"),), out=tmp_path / "said",
        pictures=False,
    )  # fmt: skip
    predict(first)
    other = draw_scenes(tmp_path / "other", 1) / "images" / "000.png"
    with pytest.raises(UserError, match="folder"):
        predict(replace(first, images=(str(other),)))


def test_options_of_the_other_kind_of_network_are_refused(scenes, segmenter, classifier, tmp_path):
    config = PredictConfig(
        network=str(segmenter), images=(str(scenes / "images"),), out=tmp_path / "said"
    )
    with pytest.raises(UserError, match="crop has no effect on"):
        predict(replace(config, crop=ShownCropOptions(crop_ratio=1.0)))
    with pytest.raises(UserError, match="opacity has no effect on"):
        predict(replace(config, network=str(classifier), opacity=0.3))
    assert not (tmp_path / "said").exists()
