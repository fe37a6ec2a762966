"""A teacher's answers, stored once, train as the teacher would have."""

import json
from functools import cache

import pytest

from limbeck import cli
from limbeck.documents import read_json
from tests.end_to_end.commands import STUDENT, data_words, process, train_words
from tests.recipes.runs import metrics_of

LABELS = ("--method", "sparse-logit")
RELATIONS = ("--method", "relation", "--relation.drop-path-rate", "0")
MAPS = ("--method", "attention-map", "--attention-map.mask-ratio", "0.5")
DECODER = ("--method", "decoder-feature", "--decoder-feature.target-block", "-1")
# What is stored is rounded: probabilities to a twelfth of a per cent or so, bf16 tokens to 0.4 %.
TOLERANCES = {LABELS: 2e-3, RELATIONS: 5e-3, MAPS: 5e-3, DECODER: 5e-3}
KINDS = {LABELS: ("--store.top-k", "3"), RELATIONS: ("--store.token-dtype", "bf16")}
KINDS[MAPS] = KINDS[DECODER] = KINDS[RELATIONS]


def store_words(images, out, teacher, method, *more):
    return [
        *("store-targets", *data_words(images), "--out", str(out), *STUDENT, *method, *more),
        *("--teacher", str(teacher), "--teacher.precision", "fp32", "--device", "cpu"),
        *("--store.batch-size", "8", *KINDS[method]),
    ]


def losses_of(run):
    return [record["losses"]["total"] for record in metrics_of(run)[0]]


@pytest.fixture(scope="module")
def folder_of(images, teacher, classifier, tmp_path_factory):
    """For a method: a folder with a store of all epochs, and a training by the live teacher."""

    @cache
    def make(method):
        folder = tmp_path_factory.mktemp("stored")
        source = classifier if method == LABELS else teacher
        cli.run(store_words(images, folder / "store", source, method, "--store.num-views", "4"))
        live = ["distill", *train_words(images, folder / "live"), *STUDENT, *method]
        cli.run([*live, "--teacher", str(source), "--teacher.precision", "fp32"])
        return folder

    return make


@pytest.mark.parametrize("method", KINDS, ids=lambda method: method[1])
@pytest.mark.parametrize("num_workers", [0, 1, 3])
def test_stored_and_live_losses_agree(folder_of, images, tmp_path, method, num_workers):
    folder = folder_of(method)
    words = ["distill", *train_words(images, tmp_path / "run"), *STUDENT, *method]
    words[words.index("--data.num-workers") + 1] = str(num_workers)
    cli.run([*words, "--targets", str(folder / "store")])
    live = losses_of(folder / "live")
    assert len(live) == 8 and live[0] != live[-1]
    assert losses_of(tmp_path / "run") == pytest.approx(live, rel=TOLERANCES[method])
    record = read_json(tmp_path / "run" / "student.json")
    assert record["teacher"] == read_json(folder / "live" / "student.json")["teacher"]


@pytest.mark.slow
def test_two_processes_read_what_two_processes_wrote(folder_of, images, classifier, tmp_path):
    words = store_words(images, tmp_path / "store", classifier, LABELS, "--store.num-views", "4")
    done = process(words, cwd=tmp_path, num_processes=2)
    assert done.returncode == 0, done.stderr
    one = folder_of(LABELS) / "store"
    for part in sorted(one.glob("part-*.safetensors")):
        assert (tmp_path / "store" / part.name).read_bytes() == part.read_bytes()
    train = ["distill", *train_words(images, tmp_path / "run"), *STUDENT, *LABELS]
    done = process([*train, "--targets", str(one)], cwd=tmp_path, num_processes=2)
    assert done.returncode == 0, done.stderr
    live = losses_of(folder_of(LABELS) / "live")
    assert losses_of(tmp_path / "run") == pytest.approx(live, rel=TOLERANCES[LABELS])


def test_a_longer_training_uses_its_views_again_and_says_so(images, classifier, tmp_path, caplog):
    cli.run(store_words(images, tmp_path / "store", classifier, LABELS, "--store.num-views", "2"))
    words = ["distill", *train_words(images, tmp_path / "run"), *STUDENT, *LABELS]
    cli.run([*words, "--targets", str(tmp_path / "store")])
    assert "each is used about 2 times in 4 epochs" in caplog.text
    assert json.loads((tmp_path / "store" / "manifest.json").read_text())["num_views"] == 2
