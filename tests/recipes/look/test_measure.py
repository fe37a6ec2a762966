"""What is looked into, and on which images."""

import pytest

from limbeck.data.options import DataOptions
from limbeck.errors import UserError
from limbeck.recipes.look.measure import draw_images, file_name, load_subjects, short_names
from limbeck.recipes.look.options import AnalyzeConfig
from limbeck.recipes.run.images import open_images


def config_of(root, *runs, **changes):
    data = DataOptions(root=str(root), holdout_ratio=0.25, num_workers=0)
    return AnalyzeConfig(**{"runs": tuple(map(str, runs)), "data": data} | changes)


@pytest.mark.parametrize(
    ("sources", "names"),
    [
        (["runs/a", "runs/b/"], ["a", "b"]),
        (["mae/run", "deit/run"], ["mae/run", "deit/run"]),
        (["timm:vit_tiny_patch16_224", "hf:owner/name"], ["vit_tiny_patch16_224", "name"]),
        (["run", "/x/run"], ["run", "x/run"]),
        (["a/run", "./a/run"], ["a/run", "./a/run"]),
    ],
)
def test_names_are_as_short_as_they_can_be(sources, names):
    assert short_names(sources) == names


def test_a_name_becomes_a_folder_s():
    assert file_name("mae/run 1: x") == "mae-run-1-x"


def test_networks_and_their_reference(images, student, teacher):
    config = config_of(images, student, reference=str(teacher), names=("mine",))
    subjects = load_subjects(config)
    assert [subject.name for subject in subjects] == ["mine", str(teacher.parent.name) + "/run"]
    plain = subjects[0].plain()
    assert (plain["depth"], plain["num_heads"], plain["img_size"]) == (2, [3, 4], [32, 32])
    assert len(plain["weights"]) == 64
    own = config_of(images, student, teacher, reference=str(teacher))
    assert len(load_subjects(own)) == 2


def test_held_out_images_where_there_are_labels(images, unlabelled, tmp_path):
    config = config_of(images, "x", num_images=6)
    opened = open_images(config.data)
    shown = draw_images(config, opened)
    held_out = {opened.holdout.key(i) for i in range(len(opened.holdout))}
    assert {shown.source.key(i) for i in range(6)} <= held_out
    plain = shown.plain()
    assert (plain["from"], plain["sampling"]) == ("held-out images", "stratified")
    assert (plain["num_images"], plain["num_classes"], plain["num_classes_covered"]) == (6, 3, 3)
    config = config_of(unlabelled, "x")
    shown = draw_images(config, open_images(config.data))
    assert shown.plain()["from"] == "all images" and len(shown.source) == 48
    assert shown.plain()["sampling"] == "random"


def test_too_few_images(images):
    config = config_of(images, "x", num_images=3)
    with pytest.raises(UserError, match="Only 3 images are there to be shown, and 4 are the least"):
        draw_images(config, open_images(config.data))


def test_blocks_that_are_not_there_are_said_before_the_work(images, student):
    config = config_of(images, student, keep_blocks=(0, 3))
    with pytest.raises(UserError, match="--keep-blocks 3: .* has 2 blocks"):
        load_subjects(config)
    config = config_of(images, "tests.recipes.own_teachers:convnet", keep_blocks=(0,))
    with pytest.raises(UserError, match="can be a teacher, not a student"):
        load_subjects(config)
