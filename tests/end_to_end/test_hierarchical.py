"""Hiera and Swin through the verbs: pre-trained, distilled, fine-tuned, evaluated, read back."""

import json
import re

import pytest
import torch

import limbeck
from limbeck.cli import main
from limbeck.models.build import build_student
from limbeck.models.finished import save_student
from limbeck.models.options import StudentOptions
from limbeck.models.timm_encoder import TimmEncoder
from tests.end_to_end.commands import data_words, train_words
from tests.recipes.runs import metrics_of, snapshot

HIERA = ["--student", "hiera_46", "--student.img-size=64", "--student.embed-dim=4"]
SWIN = ["--student", "swin_48", "--student.img-size=64", "--student.embed-dim=12"]
SMALL = ["--student.mlp-ratio=1", "--train.epochs=1"]


def run(*words):
    main([str(word) for word in words])


def test_a_hiera_from_masked_pixels_to_a_classifier(images, tmp_path, capsys):
    out, classifier, scores = tmp_path / "run", tmp_path / "classifier", tmp_path / "scores"
    words = [*train_words(images, out), *HIERA, *SMALL, "--method", "masked-pixel"]
    words += ["--masked-pixel.mask-ratio", "0.4", "--masked-pixel.decoder-embed-dim", "32"]
    run("doctor", *words)
    assert capsys.readouterr().out.endswith("Ready.\n")
    run("distill", *words)
    student = limbeck.load(out)
    assert student.facts.grid == (4, 4) and student.facts.mask_grid == (2, 2)
    record = json.loads((out / "student.json").read_text())
    # The norm of the classifier-to-be is all that pre-training does not reach.
    assert record["untrained"]["parameters"] == ["head.norm.weight", "head.norm.bias"]
    assert record["positions"] == "learned"
    before = snapshot(out)
    run("distill", *words)
    assert snapshot(out) == before
    run("inspect", out)
    assert "12 blocks, width 32" in capsys.readouterr().out

    run("finetune", *train_words(images, classifier), "--train.epochs=1", "--student", out,
        "--drop-path-rate=0.1", "--mix.cutmix-alpha=0")  # fmt: skip
    tuned = limbeck.load(classifier)
    assert tuned.facts.grid == (2, 2) and tuned.facts.num_classes == 3
    run("evaluate", *data_words(images), "--student", classifier, "--baseline", out,
        "--out", scores, "--no-measure-speed")  # fmt: skip
    assert "| student " in capsys.readouterr().out


def test_a_swin_learns_from_a_hiera_and_classifies(images, tmp_path):
    teacher, out, classifier = tmp_path / "teacher", tmp_path / "run", tmp_path / "classifier"
    words = [*SWIN, *SMALL]
    run("finetune", *train_words(images, teacher), "--student", "hiera_46", "--img-size=64",
        "--train.epochs=0.5")  # fmt: skip
    run("distill", *train_words(images, out), *words, "--method", "feature", "--teacher", teacher,
        "--feature.target=output", "--feature.drop-path-rate=0")  # fmt: skip
    student = limbeck.load(out)
    assert student.facts.grid == (2, 2) and student.facts.num_heads[-1] == 24
    run("finetune", *train_words(images, classifier), "--train.epochs=1", "--student", out)
    assert limbeck.load(classifier).facts.num_classes == 3


@pytest.fixture
def shown(monkeypatch):
    """What each call of an encoder of timm was shown: its width, ids_keep and mask token."""
    calls, forward = [], TimmEncoder.forward

    def watched(self, images, ids_keep=None, taps=(), mask_token=None):
        calls.append((self.facts.embed_dim, ids_keep, mask_token))
        return forward(self, images, ids_keep, taps, mask_token)

    monkeypatch.setattr(TimmEncoder, "forward", watched)
    return calls


def pairs_of(shown, student, teacher):
    """(student's, teacher's) ids_keep and mask token of the calls of each step."""
    masked = [call for call in shown if call[1] is not None]
    sides = [[call[1:] for call in masked if call[0] == width] for width in (student, teacher)]
    assert sides[0]
    return list(zip(*sides, strict=True))


def test_a_hiera_learns_attention_from_a_wider_one(images, tmp_path, shown):
    """Two pairs of global blocks: of the third stage, and of the last."""
    out = tmp_path / "run"
    wide = StudentOptions(name="hiera_46", img_size=64, embed_dim=8, mlp_ratio=1)
    save_student(build_student(wide, seed=1), tmp_path / "teacher", {})
    run("distill", *train_words(images, out), *HIERA, *SMALL, "--method", "attention-map",
        "--teacher", tmp_path / "teacher", "--attention-map.mask-ratio=0.4",
        "--attention-map.block-pairs", "6", "6", "-1", "-1")  # fmt: skip
    for own, theirs in pairs_of(shown, 32, 64):
        assert torch.equal(own[0], theirs[0]) and own[0].shape[1] == 2  # of 4 units
        assert own[1] is theirs[1] is None
    (first, *_), _ = metrics_of(out)
    assert first["losses"].keys() == {"total", "scores_0", "scores_1", "pixel"}
    record = json.loads((out / "student.json").read_text())
    assert record["untrained"]["parameters"] == ["head.norm.weight", "head.norm.bias"]


def test_a_swin_learns_from_one_that_simmim_trained_behind_its_own_mask(images, tmp_path, shown):
    teacher, out = tmp_path / "teacher", tmp_path / "run"
    run("distill", *train_words(images, teacher), *SWIN, *SMALL, "--student.embed-dim=24",
        "--method", "simmim")  # fmt: skip
    shown.clear()
    run("distill", *train_words(images, out), *SWIN, *SMALL, "--method", "attention-map",
        "--teacher", teacher, "--attention-map.mask-ratio=0.6", "--attention-map.decoupled",
        "--attention-map.masking=mask-token", "--attention-map.regression.before-block=4",
        "--attention-map.regression.weight=1")  # fmt: skip
    token = limbeck.load(teacher).mask_token
    for own, theirs in pairs_of(shown, 96, 192):
        assert torch.equal(own[0], theirs[0]) and own[0].shape[1] == 64  # one square of 4
        assert own[1].shape == (1, 1, 12) and torch.equal(theirs[1], token)
    (first, last), _ = metrics_of(out)
    assert first["losses"].keys() == {"total", "scores", "pixel"}
    assert last["losses"]["total"] < first["losses"]["total"]
    state = torch.load(out / "checkpoint.pt", weights_only=True)["module"]
    table = "method.extra_block.position_bias.relative_position_bias_table"
    assert state[table].any()  # it starts at zero, and is thrown away
    assert limbeck.load(out).facts.depth == 12


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--student.depth=3"], "'hiera_46' is built of stages, so depth can't be set"),
        (["--student.num-heads=3"], "so --student.num-heads can't be set"),
        (["--student.img-size=60"], "mask units of hiera_tiny_224; .* a multiple of 32"),
        (["--student", "vit_tiny", "--student.q-pool=2"], "--student.q-pool is for a Hiera"),
        (["--student", "swin_48"], "can't leave patches out"),
    ],
)
def test_what_can_not_be_is_refused(images, tmp_path, capsys, words, message):
    with pytest.raises(SystemExit):
        run("distill", *train_words(images, tmp_path / "run"), "--student", "hiera_46", *words,
            "--method", "masked-pixel")  # fmt: skip

    assert re.search(message, capsys.readouterr().err)
