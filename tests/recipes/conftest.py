"""Images and finished runs that the tests of recipes share; nothing may write into them."""

from dataclasses import replace

import pytest

from limbeck.evaluation import pareto, pictures
from limbeck.evaluation import report as report_module
from limbeck.recipes.train.detect import detect
from limbeck.recipes.train.distill import distill
from limbeck.recipes.train.finetune import finetune
from limbeck.recipes.train.segment import segment
from tests.recipes.objects import detect_config, draw_objects
from tests.recipes.runs import (
    distill_config,
    draw_classes,
    draw_unlabelled,
    finetune_config,
    teacher_config,
)
from tests.recipes.scenes import draw_scenes, segment_config


@pytest.fixture(scope="session")
def images(tmp_path_factory):
    """48 images in three class folders."""
    return draw_classes(tmp_path_factory.mktemp("images") / "photos")


@pytest.fixture(scope="session")
def unlabelled(tmp_path_factory):
    """48 images in one folder."""
    return draw_unlabelled(tmp_path_factory.mktemp("unlabelled") / "photos")


@pytest.fixture(scope="session")
def teacher(images, tmp_path_factory):
    """A finished masked-pixel run: three blocks, width 32, four heads."""
    return distill(teacher_config(images, tmp_path_factory.mktemp("teacher") / "run"))


@pytest.fixture(scope="session")
def student(images, teacher, tmp_path_factory):
    """A finished distillation: two blocks, width 24, three heads, four in the last block."""
    return distill(distill_config(images, tmp_path_factory.mktemp("student") / "run", teacher))


@pytest.fixture(scope="session")
def classifier(images, teacher, tmp_path_factory):
    """The teacher above, fine-tuned to tell the three classes apart."""
    return finetune(finetune_config(images, tmp_path_factory.mktemp("classifier") / "run", teacher))


@pytest.fixture(autouse=True)
def not_rendered(monkeypatch):
    """Pictures are drawn and written, but not rendered, which is most of a small analysis's time.

    ``tests/evaluation`` looks at rendered ones; so do those fixtures here that are shared.
    """

    def write(figure, file):
        paths = [file.with_suffix(".png"), file.with_suffix(".svg")]
        for path in paths:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(b"\x89PNG not rendered" if path.suffix == ".png" else b"<svg/>")
        return paths

    for module in (report_module, pictures, pareto):
        monkeypatch.setattr(module, "save_figure", write)


@pytest.fixture(scope="session")
def scenes(tmp_path_factory):
    """A folder of drawn scenes."""
    return draw_scenes(tmp_path_factory.mktemp("scenes") / "boxes")


@pytest.fixture(scope="session")
def segmenter(scenes, tmp_path_factory):
    """The run of a tiny segmenter that finds them."""
    return segment(segment_config(scenes, tmp_path_factory.mktemp("segmenter") / "run"))


@pytest.fixture(scope="session")
def objects(tmp_path_factory):
    """A folder of drawn images with boxes and outlines."""
    return draw_objects(tmp_path_factory.mktemp("objects") / "blocks")


@pytest.fixture(scope="session")
def detector(objects, tmp_path_factory):
    """The run of a tiny detector that finds them."""
    config = detect_config(objects, tmp_path_factory.mktemp("detector") / "run")
    return detect(replace(config, train=replace(config.train, epochs=45)))
