"""``limbeck predict``: masks, pictures and lines for any images, and going on where it stopped."""

import csv
import json
import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from limbeck.data.options import DataOptions
from limbeck.data.scenes.raster import decode_runs
from limbeck.data.video import read_frames, write_video
from limbeck.errors import RunError, UserError
from limbeck.evaluation.options import MapOptions
from limbeck.evaluation.overlay import SWATCH
from limbeck.evaluation.sliding import predict_map
from limbeck.models.finished import load_finished
from limbeck.recipes.ship import answering
from limbeck.recipes.ship.options import ShownMapOptions
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


def rows_of(folder):
    with (folder / "predictions.csv").open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def test_the_table_and_the_pictures_say_what_the_lines_say(images, classifier, tmp_path):
    config = PredictConfig(
        network=str(classifier),
        images=(str(images / "red" / "00[0-3].png"),),
        out=tmp_path / "said",
        top=2,
    )
    found = predict(config)
    for line, row in zip(lines_of(found.out), rows_of(found.out), strict=True):
        (first, p), (second, q) = line["classes"].items()
        assert row == {
            "image": line["image"], "class_1": first, "probability_1": str(p),
            "class_2": second, "probability_2": str(q),
        }  # fmt: skip
    assert found.rows[0]["class"] == "red" and found.rows[0]["images"] == 4
    assert "| red   |      4 |" in report(found)
    with Image.open(found.out / "pictures" / "000.png") as picture:
        assert picture.width > 224 and picture.height == 202


def test_nearest_images_of_a_gallery_that_changes(images, student, tmp_path, monkeypatch):
    shutil.copytree(images, tmp_path / "gallery")
    config = PredictConfig(
        network=str(student), images=(str(images / "red" / "00[0-3].png"),), out=tmp_path / "said",
        gallery=str(tmp_path / "gallery"), top=3,
    )  # fmt: skip
    found = predict(config)
    for line in lines_of(found.out):
        near = list(line["neighbours"].items())
        assert near[0] == (f"red/{line['image']}", pytest.approx(1, abs=1e-5)) and len(near) == 3
    assert rows_of(found.out)[1]["nearest_1"] == "red/001.png"
    with Image.open(found.out / "pictures" / "003.png") as picture:
        row = np.array(picture)[112]
    assert np.array_equal(row[:224], row[244:468])  # beside the image its nearest, itself
    first = (found.out / "predictions.jsonl").read_text()
    with monkeypatch.context() as patch:
        patch.setattr(answering.Neighbours, "say", None)  # nothing is left to be said
        predict(config)
    assert (found.out / "predictions.jsonl").read_text() == first
    (tmp_path / "gallery" / "red" / "001.png").unlink()
    predict(config)
    assert [next(iter(line["neighbours"])) for line in lines_of(found.out)][::2] == [
        "red/000.png", "red/002.png"
    ]  # fmt: skip
    assert all("red/001.png" not in line["neighbours"] for line in lines_of(found.out))
    assert len(lines_of(found.out)) == 4


def test_a_segmenter_sees_images_as_its_run_was_scored(scenes, segmenter, tmp_path, caplog):
    shutil.copytree(segmenter, tmp_path / "run")
    record = json.loads((tmp_path / "run" / "student.json").read_text())
    record["config"]["evaluation"] |= {"mode": "whole", "flip": True, "scales": [1.0, 1.5]}
    (tmp_path / "run" / "student.json").write_text(json.dumps(record))
    config = PredictConfig(
        network=str(tmp_path / "run"), images=(str(scenes / "images" / "000.png"),),
        out=tmp_path / "said", maps=ShownMapOptions(flip=False), pictures=False,
    )  # fmt: skip
    with caplog.at_level("INFO", "limbeck"):
        found = predict(config)
    assert "as --maps says: mode whole, scales (1.0, 1.5)." in caplog.text
    network, image = load_finished(segmenter), Image.open(scenes / "images" / "000.png")
    own = predict_map(
        network, torch.from_numpy(np.array(image)).permute(2, 0, 1),
        MapOptions(mode="whole", scales=(1.0, 1.5)),
    )  # fmt: skip
    with Image.open(found.out / "masks" / "000.png") as mask:
        assert np.array_equal(np.array(mask), own.numpy())
    slide = replace(config, maps=ShownMapOptions(mode="slide", scales=(1.0,), flip=False, stride=9))
    assert predict(replace(slide, out=tmp_path / "other")).num_images == 1


def test_a_video_goes_on_where_it_stopped(scenes, segmenter, tmp_path, monkeypatch):
    pytest.importorskip("av")
    pictures = [Image.open(scenes / "images" / f"{index:03d}.png") for index in range(10)]
    write_video(tmp_path / "clip.mp4", ((place / 4, own) for place, own in enumerate(pictures)))
    (tmp_path / "bad.mp4").write_bytes(b"none")
    config = PredictConfig(
        network=str(segmenter), images=(str(tmp_path / "*.mp4"),), out=tmp_path / "said", every=3
    )
    real, count = answering.save_png, []

    def stops(*given):
        count.append(1)
        if len(count) == 3:
            raise KeyboardInterrupt
        real(*given)

    monkeypatch.setattr(answering, "save_png", stops)
    with pytest.raises(KeyboardInterrupt):
        predict(config)
    found = predict(config)
    assert (found.num_images, found.num_skipped, len(count)) == (4, 1, 5)
    lines = lines_of(found.out)
    assert [(line["frame"], line["seconds"]) for line in lines] == [
        (0, 0), (3, 0.75), (6, 1.5), (9, 2.25)
    ]  # fmt: skip
    assert lines[1]["mask"] == "masks/clip.mp4/000003.png"
    assert rows_of(found.out)[2]["seconds"] == "1.5"
    drawn = list(read_frames(found.out / "pictures" / "clip.mp4.mp4", 1, 10**6))
    assert [each.seconds for each in drawn] == [0, 0.75, 1.5, 2.25]
    assert drawn[0].pixels.shape == (40 + 2 * SWATCH, 48, 3)
    with Image.open(found.out / "masks" / "clip.mp4" / "000003.png") as mask:
        assert mask.size == (48, 40) and set(np.unique(mask)) == {0, 1}
    before = (found.out / "pictures" / "clip.mp4.mp4").read_bytes()
    predict(config)
    assert (found.out / "pictures" / "clip.mp4.mp4").read_bytes() == before and len(count) == 5


def test_frames_of_a_classifier_in_batches(images, classifier, tmp_path):
    pytest.importorskip("av")
    photos = [Image.open(images / name / "000.png") for name in ("red", "blue", "green")]
    write_video(tmp_path / "clip.mp4", ((float(place), own) for place, own in enumerate(photos)))
    config = PredictConfig(
        network=str(classifier), images=(str(tmp_path / "clip.mp4"),), out=tmp_path / "said",
        crop=ShownCropOptions(batch_size=2),
    )  # fmt: skip
    lines = lines_of(predict(config).out)
    assert [next(iter(line["classes"])) for line in lines] == ["red", "blue", "green"]
    other = replace(config, crop=ShownCropOptions(batch_size=1))
    assert predict(other).num_images == 3  # the same run goes on


def test_when_nothing_can_be_read_it_is_an_error(classifier, student, images, tmp_path):
    (tmp_path / "broken.png").write_bytes(b"no image")
    config = PredictConfig(
        network=str(classifier), images=(str(tmp_path / "broken.png"),), out=tmp_path / "said"
    )
    with pytest.raises(RunError, match=r"No image can be read; .*skipped.jsonl says why"):
        predict(config)
    for changes, message in (
        ({"data": DataOptions(holdout_ratio=0.5)}, "--data.holdout-ratio has no effect"),
        ({"crop": ShownCropOptions(pool="cls")}, "crop.pool has no effect without --gallery"),
        ({"gallery": "nowhere"}, "nowhere does not exist"),
        ({"every": 2}, "every has no effect without a video"),
    ):
        with pytest.raises(UserError, match=message):
            predict(replace(config, **changes))


def test_boxes_their_files_and_pictures(objects, detector, tmp_path):
    config = PredictConfig(
        network=str(detector), images=(str(objects),), out=tmp_path / "said", boxes=("coco", "yolo")
    )
    found = predict(config)
    assert found.num_images == 24
    truth = json.loads((objects / "annotations.json").read_text())
    near = []
    for line in lines_of(found.out):
        assert line["size"] == [48, 40] and sum(line["counts"].values()) == len(line["boxes"])
        index = int(line["image"].partition(".")[0])
        boxes = [each["bbox"] for each in truth["annotations"] if each["image_id"] == index]
        for each in line["boxes"]:
            near.append(
                min(np.abs(np.subtract(each["box"], box)).max() for box in boxes or [[99] * 4])
            )
    assert np.mean(np.less(near, 5)) > 0.6
    entries = json.loads((found.out / "detections.json").read_text())
    lines = [each for line in lines_of(found.out) for each in line["boxes"]]
    assert [each["bbox"] for each in entries] == [each["box"] for each in lines]
    assert {each["category_id"] for each in entries} <= {1, 2}
    rows = (found.out / "labels" / "000.txt").read_text().split()
    kind, x, y, w, h = map(float, rows[:5])
    left, top, wide, high = lines_of(found.out)[0]["boxes"][0]["box"]
    assert (x * 48, y * 40) == pytest.approx((left + wide / 2, top + high / 2), abs=1e-3)
    assert (w * 48, h * 40) == pytest.approx((wide, high), abs=1e-3)
    with Image.open(found.out / "pictures" / "000.png") as picture:
        assert picture.size == (7 * 48, 7 * 40)
    assert "detections.json, labels" in report(found)
    best = json.loads((detector / "student.json").read_text())["scores"]["threshold"]
    assert min(each["score"] for each in lines) >= best
    sure = predict(replace(config, threshold=1.0, overwrite=True))
    assert not any(line["boxes"] for line in lines_of(sure.out))
    with pytest.raises(UserError, match="threshold has no effect on|top has no effect on"):
        predict(replace(config, top=3, out=tmp_path / "other"))


def test_boxes_of_a_video_go_on_where_it_stopped(objects, detector, tmp_path, monkeypatch):
    pytest.importorskip("av")
    pictures = [Image.open(objects / f"{index:03d}.png") for index in range(6)]
    write_video(tmp_path / "clip.mp4", ((place / 4, own) for place, own in enumerate(pictures)))
    config = PredictConfig(
        network=str(detector), images=(str(tmp_path / "clip.mp4"),), out=tmp_path / "said",
        boxes=("yolo",),
    )  # fmt: skip
    monkeypatch.setattr(answering.Boxes, "batch_size", 2)
    real, count = answering.Boxes.say, []

    def stops(self, samples):
        count.append(len(samples))
        if len(count) == 2:
            raise KeyboardInterrupt
        return real(self, samples)

    monkeypatch.setattr(answering.Boxes, "say", stops)
    with pytest.raises(KeyboardInterrupt):
        predict(config)
    assert predict(config).num_images == 6 and count == [2, 2, 2, 2]
    assert [line["frame"] for line in lines_of(config.out)] == [*range(6)]
    assert len(list((config.out / "labels" / "clip.mp4").glob("*.txt"))) == 6
    drawn = list(read_frames(config.out / "pictures" / "clip.mp4.mp4", 1, 10**6))
    assert [each.pixels.shape for each in drawn] == [(7 * 40, 7 * 48, 3)] * 6


def test_masks_of_boxes_are_told_and_drawn(objects, tmp_path):
    from limbeck.models.options import DetectorOptions
    from limbeck.recipes.train.detect import detect
    from tests.recipes.objects import detect_config

    options = DetectorOptions(width=24, masks=True)
    run = detect_config(objects, tmp_path / "run", detector=options)
    run = detect(replace(run, train=replace(run.train, epochs=1)))
    found = predict(PredictConfig(
        network=str(run), images=(str(objects / "000.png"),), out=tmp_path / "said", threshold=0.0
    ))  # fmt: skip
    (line,) = lines_of(found.out)
    for each in line["boxes"]:
        assert each["mask"]["size"] == [40, 48]
        assert sum(decode_runs(each["mask"]["counts"])) == 48 * 40
