"""``analyze``: numbers, files, what is done again and what is refused."""

import json
import shutil
import sys
from dataclasses import replace

import pytest
from safetensors.torch import load_file

from limbeck.data.options import DataOptions
from limbeck.errors import UserError
from limbeck.evaluation import cka
from limbeck.recipes.look import analyze as verb
from limbeck.recipes.look import measure
from limbeck.recipes.look.analyze import analyze, check, report
from limbeck.recipes.look.options import AnalyzeConfig
from limbeck.recipes.run.options import EmbedOptions
from tests.recipes.runs import draw_classes, snapshot

QUICK = ("train.epochs=1", "train.global_batch_size=16", "train.precision='fp32'")
OWN = "tests.recipes.own_teachers:"


def config_of(root, *runs, **changes):
    values = {
        "runs": tuple(map(str, runs)),
        "data": DataOptions(root=str(root), holdout_ratio=0.25, num_workers=0),
        "embed": EmbedOptions(crop_ratio=1.0, batch_size=4),
        "device": "cpu",
    }
    return AnalyzeConfig(**values | changes)


@pytest.fixture(scope="session")
def analyzed(images, student, teacher, tmp_path_factory):
    """Two networks, everything measured."""
    out = tmp_path_factory.mktemp("analyzed") / "out"
    config = config_of(
        images, student, teacher, out=out, names=("small", "big"), keep_blocks=(0, 2),
        label_fractions=(0.5,), num_seeds=2, finetune_options=QUICK,
    )  # fmt: skip
    return analyze(config), config


@pytest.fixture
def _nothing_is_measured(monkeypatch):
    def watch(*args):
        raise AssertionError("the work is done again")

    monkeypatch.setattr(measure, "watch", watch)


def test_similarity_of_every_pair(analyzed):
    pairs = analyzed[0].found["parts"]["similarity"]
    names = [("small", "small"), ("small", "big"), ("big", "big")]
    assert [(pair["first"], pair["second"]) for pair in pairs] == names
    for pair, shape in zip(pairs, [(3, 3), (3, 4), (4, 4)], strict=True):
        assert (len(pair["cka"]), len(pair["cka"][0])) == shape
        assert all(-0.3 < value <= 1 for row in pair["cka"] for value in row)
        assert pair["num_images"] == analyzed[0].found["images"]["num_images"]
    assert pairs[0]["cka"][2][2] == pytest.approx(1)


def test_attention_and_probes_of_every_block(analyzed):
    parts = analyzed[0].found["parts"]
    heads = {"small": [3, 4], "big": [4, 4, 4]}
    for name, counts in heads.items():
        attention = parts["attention"][name]
        assert [len(each) for each in attention["distance"]] == counts
        assert all(0 < value < 46 for each in attention["distance"] for value in each)
        probes = parts["probing"][name]
        assert [len(probes[probe]) for probe in ("knn_top1", "linear_top1")] == [len(counts)] * 2
        assert probes["linear_top1"][-1]["mean"] > 0.5  # colours; chance is a third


def test_which_layers_matter(analyzed, student):
    found, config = analyzed
    runs = found.found["parts"]["layers"]
    expected = [
        (name, count, seed) for name in ("small", "big") for count in (0, 2) for seed in range(2)
    ]
    assert [(run["model"], run["keep_blocks"], run["seed"]) for run in runs] == expected
    assert all(0 <= run["top1"] <= 1 and run["label_fraction"] == 0.5 for run in runs)
    record = json.loads(
        (config.out / "layers/small_keep0_labels0.5_seed1/student.json").read_text()
    )
    assert record["config"]["keep_blocks"] == 0
    assert record["config"]["data"]["label_fraction"] == 0.5


def test_the_files(analyzed):
    found, config = analyzed
    plain = json.loads((config.out / "analysis.json").read_text())
    assert plain == found.found
    assert plain["images"]["num_classes_covered"] == 3
    assert plain["versions"]["torch"] and len(plain["models"][0]["weights"]) == 64
    text = (config.out / "analysis.md").read_text()
    assert text in report(found) + "\n" and "small resembles big" in text
    pytest.importorskip("matplotlib")
    names = ["similarity", "attention_distance", "attention_entropy", "probing", "layers_kept"]
    for name in names:
        assert (config.out / f"{name}.png").read_bytes().startswith(b"\x89PNG")
        assert f"{name}.svg" in report(found)


@pytest.mark.usefixtures("_nothing_is_measured")
def test_the_same_again_measures_nothing(analyzed, caplog):
    found, config = analyzed
    before = (config.out / "analysis.json").read_bytes()
    with caplog.at_level("INFO", "limbeck"):
        again = analyze(config)
    assert again.found == found.found
    assert "What is to be measured is in" in caplog.text
    assert (config.out / "analysis.json").read_bytes() == before


@pytest.mark.usefixtures("_nothing_is_measured")
def test_another_analysis_is_kept(analyzed, images, student, teacher, tmp_path):
    found, config = analyzed
    before = snapshot(config.out)
    others = [
        replace(config, seed=1),
        replace(config, runs=(str(student),), names=("small",)),
        replace(config, embed=EmbedOptions(crop_ratio=1.0, batch_size=8)),
    ]
    for other in others:
        with pytest.raises(UserError, match="holds another analysis .* --overwrite"):
            analyze(other)
    assert snapshot(config.out) == before


def test_other_images_or_weights_are_another_analysis(images, student, tmp_path):
    copy, run = shutil.copytree(images, tmp_path / "copy"), tmp_path / "run"
    shutil.copytree(student, run)
    config = config_of(copy, run, out=tmp_path / "out", parts=("attention",))
    first = analyze(config)
    for file in sorted(copy.rglob("*.png"))[::3]:
        file.unlink()
    with pytest.raises(UserError, match="holds another analysis"):
        analyze(config)
    other = analyze(replace(config, overwrite=True))
    assert other.found["images"]["num_images"] < first.found["images"]["num_images"]


def test_nothing_of_a_replaced_analysis_is_left(images, student, tmp_path):
    pytest.importorskip("matplotlib")
    config = config_of(images, student, out=tmp_path)
    assert len(analyze(config).pictures) == 8
    (tmp_path / "mine.png").touch()
    found = analyze(replace(config, seed=1, overwrite=True, parts=("attention",)))
    files = {"analysis.json", "analysis.md", "mine.png", *(p.name for p in found.pictures)}
    assert {path.name for path in tmp_path.iterdir()} == files


def test_missing_parts_are_added(images, student, tmp_path):
    config = config_of(images, student, out=tmp_path, parts=("attention",))
    first = analyze(config).found["parts"]
    assert list(first) == ["attention"]
    found = analyze(replace(config, parts=("similarity",))).found["parts"]
    assert found["attention"] == first["attention"] and list(found) == ["attention", "similarity"]


def test_what_is_finished_survives_a_stop(images, student, tmp_path, monkeypatch):
    config = config_of(images, student, out=tmp_path)

    def stopped(*args, **kwargs):
        raise KeyboardInterrupt

    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr(measure, "probe_blocks", stopped)
        analyze(config)
    kept = json.loads((tmp_path / "analysis.json").read_text())["parts"]
    assert set(kept) == {"similarity", "attention"}
    monkeypatch.setattr(cka.MinibatchCka, "update", stopped)
    found = analyze(config).found["parts"]
    assert found["similarity"] == kept["similarity"] and "probing" in found


def test_a_reference_is_compared_with_all(images, student, teacher, tmp_path):
    config = config_of(
        images, student, out=tmp_path, reference=str(teacher), parts=("similarity",)
    )  # fmt: skip
    pairs = analyze(config).found["parts"]["similarity"]
    assert len(pairs) == 2 and pairs[0]["second"] == pairs[1]["second"] == pairs[1]["first"]


def test_the_numbers_do_not_hang_on_the_order_or_the_company(images, student, teacher, tmp_path):
    def of_student(*runs):
        config = config_of(images, *runs, out=tmp_path / str(len(runs)), parts=("attention",))
        (name,) = (n for n in measure.short_names(config.runs) if str(student).endswith(n))
        return analyze(config).found["parts"]["attention"][name]

    assert of_student(teacher, student) == of_student(student)


def test_unlabelled_images(unlabelled, student, tmp_path):
    config = config_of(unlabelled, student, out=tmp_path, keep_blocks=(0,), finetune_options=QUICK)
    found = analyze(config).found
    assert set(found["parts"]) == {"similarity", "attention", "layers"}
    assert found["images"]["from"] == "all images" and found["parts"]["layers"] == []
    text = (tmp_path / "analysis.md").read_text()
    assert "Blocks were not probed: the images have no labels." in text
    assert "Which layers matter was not measured: the images have no labels." in text
    assert "no labels)" in text
    assert analyze(config).found["notes"] == found["notes"]  # each once
    by_class = config_of(unlabelled, student, out=tmp_path / "x", sampling="stratified")
    with pytest.raises(UserError, match="use --sampling random"):
        analyze(by_class)


def test_a_network_without_the_taps_is_left_out_with_a_sentence(images, student, tmp_path):
    config = config_of(images, student, f"{OWN}convnet", out=tmp_path)
    found = analyze(config).found
    assert len(found["parts"]["similarity"]) == 1 and list(found["parts"]["attention"]) == ["run"]
    notes = [note for note in found["notes"] if "convnet" in note]
    assert len(notes) == 3 and all("and this one has none" in note for note in notes)
    alone = analyze(config_of(images, f"{OWN}convnet", out=tmp_path / "alone"))
    assert alone.found["parts"] == {"similarity": [], "attention": {}} and not alone.pictures


def test_an_encoder_of_another_image_size(images, student, tmp_path):
    """The fake's images have 8 pixels, the student's 32."""
    config = config_of(images, student, "tests.fakes:FakeEncoder", out=tmp_path)
    found = analyze(config).found["parts"]
    assert len(found["similarity"]) == 3 and len(found["probing"]) == 2
    assert found["attention"]["tests.fakes:FakeEncoder"]["uniform_distance"][0] < 8


def test_without_matplotlib_the_numbers_are_there(images, student, tmp_path, monkeypatch, caplog):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    config = config_of(images, student, out=tmp_path, parts=("attention",))
    with caplog.at_level("INFO", "limbeck"):
        found = analyze(config)
    assert found.pictures == [] and "pictures: none" in report(found)
    assert "limbeck[plot]" in caplog.text and (tmp_path / "analysis.json").exists()


def test_bad_images_are_said(images, student, tmp_path):
    copy = shutil.copytree(images, tmp_path / "copy")
    opened = config_of(copy, student)
    bad = sorted(copy.rglob("*.png"))
    for file in bad[:12]:
        file.write_bytes(b"no image")
    data = replace(opened.data, max_bad_ratio=0.5)
    found = analyze(replace(opened, data=data, out=tmp_path / "out")).found
    assert any("images could not be used and were skipped" in note for note in found["notes"])


def test_pooled_similarity_is_another(images, student, tmp_path):
    values = [
        analyze(
            config_of(
                images, student, out=tmp_path / str(pooled), parts=("similarity",),
                pooled_similarity=pooled,
            )
        ).found["parts"]["similarity"][0]["cka"][0][2]
        for pooled in (False, True)
    ]  # fmt: skip
    assert values[0] != values[1]


def test_fine_tunings_keep_what_they_say(analyzed, student):
    """With no step between, the kept blocks would be the student's; two steps leave them near."""
    out, own = analyzed[1].out / "layers", load_file(student / "student.safetensors")

    def change(run, name):
        return float((load_file(out / run / "student.safetensors")[name] - own[name]).norm())

    name = "blocks.1.mlp.fc1.weight"
    assert change("small_keep0_labels0.5_seed0", name) > 5 * change(
        "small_keep2_labels0.5_seed0", name
    )


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"runs": ()}, "No network is named"),
        ({"runs": ("no/such",)}, "no/such"),
        ({"names": ("a", "b")}, "--names has 2 names for 1 networks"),
        ({"reference": "hff:a"}, "there is no scheme 'hff:'"),
        ({"data": DataOptions()}, "No images are named"),
        ({"parts": ()}, "There is nothing to do"),
        ({"parts": ("attention",), "reference": "timm:vit_tiny_patch16_224"}, "reference has no e"),
        ({"parts": ("attention",), "pooled_similarity": True}, "pooled_similarity has no effect"),
        ({"parts": ("similarity",), "cell_px": 14.0}, "cell_px has no effect without attention"),
        ({"parts": ("similarity",), "num_train": 7}, "num_train has no effect without probing"),
        ({"num_seeds": 2}, "num_seeds has no effect without --keep-blocks"),
        ({"label_fractions": (0.1,)}, "label_fractions has no effect without --keep-blocks"),
        ({"finetune_options": QUICK}, "finetune_options has no effect without --keep-blocks"),
        ({"keep_blocks": (1, 1)}, "keep_blocks has a number twice"),
        ({"keep_blocks": (1,), "finetune_options": ("seed=1",)}, "seed is set by the analysis"),
        (
            {"keep_blocks": (1,), "finetune_options": ("train.device='cpu'",)},
            "train.device is set by the analysis",
        ),
        ({"keep_blocks": (1,), "finetune_options": ("epochs",)}, "not NAME=VALUE as in TOML"),
        (
            {"keep_blocks": (1,), "finetune_options": ("train.epoch=1",)},
            "there is no option 'train.epoch'. Did you mean 'epochs'?",
        ),
        ({"keep_blocks": (1,), "finetune_preset": "nothing"}, "There is no preset 'nothing'"),
        (
            {"keep_blocks": (1,), "finetune_options": ("optim.warmup_epochs=200",)},
            "leaves nothing of train.epochs",
        ),
    ],
)
def test_what_check_refuses(images, student, changes, message):
    with pytest.raises(UserError) as caught:
        check(replace(config_of(images, student), **changes))
    assert message in str(caught.value)


def test_too_many_pairs_need_a_reference(images, tmp_path):
    runs = [draw_classes(tmp_path / str(number), num_per_class=1) for number in range(6)]
    with pytest.raises(UserError, match="6 networks make 21 pairs; name the one to compare"):
        check(config_of(images, *runs))
    check(config_of(images, *runs, reference=str(runs[0])))
    with pytest.raises(UserError, match="named twice"):
        check(config_of(images, runs[0], runs[0]))


def test_a_preset_and_what_differs_from_it(images, student, tmp_path):
    preset = tmp_path / "mine.toml"
    preset.write_text("[train]\nepochs = 9\nglobal_batch_size = 8\n")
    config = config_of(
        images, student, finetune_preset=str(preset), finetune_options=("train.epochs=3",)
    )
    recipe = verb.recipe_of(config)
    assert (recipe.train.epochs, recipe.train.global_batch_size) == (3, 8)


def test_several_processes_are_refused(images, student, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(UserError, match="analyze is one process.*without torchrun"):
        check(config_of(images, student))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda found: found.pop("images"), "analysis.json has no entry 'images'"),
        (lambda found: found.update(parts=[3]), "analysis.json: the entry 'parts' is"),
        (
            lambda found: found["parts"].update(similarity=[{"first": 3}]),
            "analysis.json: the entry 'parts.similarity.0.first' is 3",
        ),
        (
            lambda found: found["parts"]["attention"]["small"].pop("entropy"),
            "analysis.json has no entry 'parts.attention.small.entropy'",
        ),
    ],
)
def test_a_damaged_file_is_named(analyzed, tmp_path, change, message):
    _, config = analyzed
    found = json.loads((config.out / "analysis.json").read_text())
    change(found)
    (tmp_path / "analysis.json").write_text(json.dumps(found))
    config = replace(config, out=tmp_path)
    with pytest.raises(UserError, match=message):
        verb.claim_out(config)
    assert verb.claim_out(replace(config, overwrite=True)) == {}
