"""Accuracy under corruptions: the function, the verb, what stays and what is refused."""

import json
import re
import shutil

import numpy as np
import pytest
import torch

from limbeck.cli import run
from limbeck.data.options import CorruptionOptions, DataOptions
from limbeck.data.skipped import SkippedLog
from limbeck.errors import RunError, UserError
from limbeck.evaluation.probes import fit_linear
from limbeck.evaluation.robustness import LINEAR, OWN
from limbeck.models.origins.load import load_encoder
from limbeck.recipes.look.evaluate import evaluate, report
from limbeck.recipes.look.options import EvaluateConfig
from limbeck.recipes.look.robustness import check_images, corrupted_scores
from limbeck.recipes.run.images import open_images
from limbeck.recipes.run.options import EmbedOptions
from limbeck.recipes.run.probes import embed_source
from tests.fakes import FakeEncoder
from tests.recipes.runs import draw_classes, snapshot

CPU = torch.device("cpu")
SOME = CorruptionOptions(names=("gaussian_noise", "contrast"), severities=(1, 5))
EMBED = EmbedOptions(crop_ratio=1.0, batch_size=5)


def data_of(root, **changes):
    return DataOptions(root=str(root), **{"holdout_ratio": 0.25, "num_workers": 0} | changes)


def scores_of(encoders, root, options=SOME, *, num_workers=0, embed=EMBED, **more):
    data = data_of(root, num_workers=num_workers)
    return corrupted_scores(
        encoders, open_images(data), options, CPU, data=data, embed=embed, **more
    )


@pytest.fixture(scope="module")
def network(classifier):
    return load_encoder(str(classifier))


def test_a_classifier_is_asked_under_every_condition(images, network):
    found = scores_of({"one": network, "two": network}, images)
    assert list(found) == ["one", "two"] and list(found["one"]) == [OWN]
    one = found["one"][OWN]
    num_images = len(open_images(data_of(images)).holdout)
    assert one.names == SOME.wanted and one.severities == (1, 5)
    assert one.corrupted.shape == (2, 2, num_images) and one.clean.shape == (num_images,)
    assert one.clean_top1 > 0.8  # colours are easy; chance is a third
    assert torch.equal(one.corrupted, found["two"][OWN].corrupted)


def test_answers_are_those_to_the_corrupted_pixels(images, network):
    """Contrast 5 leaves so little of the colours that answers change."""
    from limbeck.data.corruptions import corrupt
    from limbeck.data.decode import decode_image
    from limbeck.data.sample import draw_sample
    from limbeck.data.views import eval_view
    from limbeck.records import Tap

    source = draw_sample(open_images(data_of(images)).holdout, 1000, seed=0)
    right = []
    for index in range(len(source)):
        crop = eval_view(decode_image(source.read(index).data, 10**6), 32, 1.0).permute(1, 2, 0)
        pixels = corrupt(crop.numpy(), "contrast", 5, source.key(index))
        batch = torch.from_numpy(pixels).permute(2, 0, 1)[None].float() / 255
        with torch.no_grad():
            logits = network(batch, None, (Tap("logits"),)).taps[Tap("logits")]
        right.append(int(logits.argmax()) == source.label(index))
    found = scores_of({"one": network}, images)["one"][OWN]
    assert found.corrupted[1, 1].tolist() == right


def test_workers_and_batches_change_nothing(images, network):
    first = scores_of({"one": network}, images)["one"][OWN]
    other = EmbedOptions(crop_ratio=1.0, batch_size=4)
    second = scores_of({"one": network}, images, num_workers=1, embed=other)["one"][OWN]
    assert torch.equal(first.corrupted, second.corrupted)


def test_fewer_images(images, network):
    few = CorruptionOptions(names=("fog",), severities=(2,), num_images=6)
    found = scores_of({"one": network}, images, few)["one"][OWN]
    assert found.corrupted.shape == (1, 1, 6)


def test_frozen_features_are_asked_through_a_probe(images, student):
    encoder = load_encoder(str(student))
    data = data_of(images)
    opened, skipped = open_images(data), SkippedLog(None, 48, 0.0)
    train, test = (
        embed_source(encoder, source, EMBED, data, CPU, skipped)
        for source in (opened.train, opened.holdout)
    )
    found = scores_of({"one": encoder}, images, probes={"one": fit_linear(train, test)})
    assert list(found["one"]) == [LINEAR]
    assert found["one"][LINEAR].clean_top1 > 0.8


def test_measured_scores_are_kept(images, network, tmp_path, caplog):
    first = scores_of({"one": network}, images, keep=tmp_path)["one"][OWN]
    before = snapshot(tmp_path)
    assert len(before) == 1
    caplog.set_level("INFO", "limbeck")
    caplog.clear()
    again = scores_of({"other name": network}, images, keep=tmp_path)["other name"][OWN]
    assert "measured before" in caplog.text and "Images under corruptions" not in caplog.text
    assert torch.equal(first.corrupted, again.corrupted) and torch.equal(first.clean, again.clean)
    assert first.score == again.score
    more = CorruptionOptions(names=("gaussian_noise", "contrast"), severities=(1, 4))
    scores_of({"one": network}, images, more, keep=tmp_path)
    assert len(snapshot(tmp_path)) == 2 and snapshot(tmp_path).items() >= before.items()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda kept: kept.pop("answers"), "has no entry 'answers'"),
        (lambda kept: kept["answers"].update({OWN: 3}), f"the entry 'answers.{OWN}' is 3"),
        (lambda kept: kept["answers"][OWN].update(clean="zz"), f"'answers.{OWN}.clean' is 'zz'"),
        (lambda kept: kept["answers"][OWN].update(num_clean=999), "answers to 999 images"),
        (lambda kept: kept["answers"][OWN]["names"].pop(), "not of its names and severities"),
    ],
)
def test_damaged_scores_are_named(images, network, tmp_path, change, message):
    scores_of({"one": network}, images, keep=tmp_path)
    (file,) = tmp_path.iterdir()
    kept = json.loads(file.read_text())
    change(kept)
    file.write_text(json.dumps(kept))
    with pytest.raises(UserError, match=f"{file.name}.*{message}"):
        scores_of({"one": network}, images, keep=tmp_path)


def test_kept_scores_are_of_these_very_weights(images, classifier, tmp_path):
    scores_of({"one": load_encoder(str(classifier))}, images, keep=tmp_path)
    changed = load_encoder(str(classifier))
    with torch.no_grad():
        next(changed.parameters()).add_(0.1)
    scores_of({"one": changed}, images, keep=tmp_path)
    assert len(snapshot(tmp_path)) == 2


def test_a_network_without_a_classifier_of_these_classes(images, student):
    with pytest.raises(UserError, match="one .* has no classifier of the 3 classes .* fine-"):
        scores_of({"one": load_encoder(str(student))}, images)


def test_a_classifier_of_other_classes_is_not_asked(images, classifier, tmp_path):
    """As many, and one of the same name, but another place: its answers would be taken for ours."""
    other = shutil.copytree(images, tmp_path / "other")
    (other / "red").rename(other / "amber")
    with pytest.raises(UserError, match="no classifier of the 3 classes of these images"):
        scores_of({"one": load_encoder(str(classifier))}, other)


def test_kept_scores_are_of_these_very_images(images, network, tmp_path):
    """Same names and labels, other pixels."""
    scores_of({"one": network}, images, keep=tmp_path / "kept")
    other = draw_classes(tmp_path / "other")
    scores_of({"one": network}, other, keep=tmp_path / "kept")
    assert len(snapshot(tmp_path / "kept")) == 2


def test_unlabelled_images(unlabelled, network):
    with pytest.raises(UserError, match="have no labels, .* or leave --corruptions out"):
        scores_of({"one": network}, unlabelled)
    with pytest.raises(UserError, match="have no labels"):
        check_images(open_images(data_of(unlabelled)), SOME)
    check_images(open_images(data_of(unlabelled)), CorruptionOptions())


def published_arrays(root, images):
    """CIFAR-10-C's layout, of clean images: only their place tells the severities apart."""
    from limbeck.data.decode import decode_image
    from limbeck.data.views import eval_view

    holdout = open_images(data_of(images)).holdout
    crops = [
        eval_view(decode_image(holdout.read(i).data, 10**6), 32, 1.0).permute(1, 2, 0).numpy()
        for i in range(len(holdout))
    ]
    root.mkdir()
    dark = [np.zeros_like(crop) for crop in crops]
    for name in SOME.wanted:
        np.save(root / f"{name}.npy", np.stack(crops + dark * 4))
    labels = [holdout.label(index) for index in range(len(holdout))]
    np.save(root / "labels.npy", np.array(labels * 5, np.uint8))


def test_published_arrays(images, network, tmp_path):
    published_arrays(tmp_path / "c", images)
    options = CorruptionOptions(
        names=SOME.names, severities=SOME.severities, root=str(tmp_path / "c")
    )
    found = scores_of({"one": network}, images, options)["one"][OWN]
    assert found.top1()["contrast"][0] == pytest.approx(found.clean_top1)  # severity 1: as clean
    # Black images are all of one class; of three equal ones, a third is right.
    assert found.top1()["contrast"][1] < 0.7


def test_published_folders(images, network, tmp_path):
    holdout = open_images(data_of(images)).holdout
    for name in SOME.wanted:
        for severity in SOME.severities:
            for index in range(len(holdout)):
                file = tmp_path / "c" / name / str(severity) / holdout.key(index)
                file.parent.mkdir(parents=True, exist_ok=True)
                shutil.copy(images / holdout.key(index), file)
    options = CorruptionOptions(
        names=SOME.names, severities=SOME.severities, root=str(tmp_path / "c")
    )
    found = scores_of({"one": network}, images, options)["one"][OWN]
    assert all(top1 == found.clean_top1 for level in found.top1().values() for top1 in level)
    (tmp_path / "c" / "contrast" / "5" / holdout.key(0)).write_bytes(b"no image")
    data = data_of(images, max_bad_ratio=0.5)
    with pytest.raises(RunError, match="can't be read; download them again"):
        corrupted_scores({"one": network}, open_images(data), options, CPU, data=data, embed=EMBED)


@pytest.fixture(scope="module")
def evaluated(images, classifier, teacher, tmp_path_factory):
    """An evaluation of a classifier, as its own baseline, and of frozen features."""
    out = tmp_path_factory.mktemp("evaluated") / "out"
    config = EvaluateConfig(
        student=(str(classifier),),
        baseline=(str(classifier),),
        teacher=str(teacher),
        out=out,
        data=data_of(images),
        embed=EMBED,
        num_labels=(),
        measure_speed=False,
        device="cpu",
        corruptions=SOME,
    )
    return config, evaluate(config)


def test_evaluate_has_scores_tables_and_a_picture(evaluated):
    config, found = evaluated
    student, baseline, teacher = found.rows
    assert {OWN, LINEAR} <= set(student.scores)
    assert OWN not in teacher.scores and LINEAR in teacher.scores
    assert found.verdicts[OWN].difference == 0 and found.deciding == "top1"
    plain = json.loads((config.out / "scores.json").read_text())["corrupted"]
    assert plain[OWN]["relative_to"] == "baseline"
    assert plain[LINEAR]["rows"]["teacher"]["runs"][0]["severities"] == [1, 5]
    text = (config.out / "table.md").read_text()
    assert text == report(found) + "\n"
    assert re.search(r"\| gaussian noise +\| \d", text) and "| corrupted_top1 " in text
    assert "Corruptions were made here" in text
    pytest.importorskip("matplotlib")
    assert (config.out / "corruptions.png").read_bytes().startswith(b"\x89PNG")


def test_asking_again_measures_nothing(evaluated, caplog):
    config, found = evaluated
    caplog.set_level("INFO", "limbeck")
    again = evaluate(config)
    assert "Images under corruptions" not in caplog.text
    assert again.corrupted == found.corrupted


def test_networks_of_other_sizes_are_said(images, classifier):
    config = EvaluateConfig(
        student=(str(classifier),),
        baseline=("tests.recipes.look.test_robustness:tiny",),
        data=data_of(images),
        embed=EMBED,
        num_labels=(),
        measure_speed=False,
        device="cpu",
        corruptions=CorruptionOptions(names=("brightness",), severities=(2,)),
    )
    found = evaluate(config)
    assert any("Networks of 8 and 32 px were each shown" in note for note in found.notes)


def tiny():
    """A network of 8 px."""
    return FakeEncoder()


def test_the_command(images, classifier, tmp_path, capsys):
    test = draw_classes(tmp_path / "test", num_per_class=2)
    run(
        f"evaluate -s {classifier} --baseline {classifier} --data {images} --data.eval-root {test} "
        f"--data.num-workers 0 --num-labels 1 --label-draws 1 --no-measure-speed --device cpu "
        f"--corruptions fog snow --corruptions.severities 1 3 --corruptions.num-images 5".split()
    )
    said = capsys.readouterr().out
    assert re.search(r"\| fog +\| \d", said) and "mean corruption error" in said


def test_the_command_refuses_before_the_work(images, classifier, tmp_path):
    words = f"evaluate -s {classifier} --data {images} --corruptions".split()
    with pytest.raises(UserError, match="Did you mean 'snow'"):
        run([*words, "snoww"])
    with pytest.raises(
        UserError, match="corruptions.severities 6 is refused: input should be less"
    ):
        run([*words, "all", "--corruptions.severities", "6"])
    with pytest.raises(UserError, match="lacks fog/1, fog/2, fog/3 and 2 more; complete it"):
        run([*words, "fog", "--corruptions.root", str(tmp_path), "--data.num-workers", "0"])
