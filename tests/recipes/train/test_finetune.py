"""``finetune`` as a function: a student and labelled images to a classifier."""

import json
import shutil
from dataclasses import replace
from types import SimpleNamespace

import pytest
import safetensors.torch
import timm
import torch

import limbeck
from limbeck.config import from_plain, preset_names, read_preset
from limbeck.data.options import DataOptions, MixOptions, ViewOptions
from limbeck.engine.options import OptimOptions
from limbeck.errors import UserError
from limbeck.methods.options import LogitOptions
from limbeck.models.build import set_drop_path
from limbeck.models.options import TeacherOptions
from limbeck.models.origins.inspection import inspect_file
from limbeck.models.tinymim_star import TinyMimStar
from limbeck.ops.schedules import cosine_lr, peak_lr
from limbeck.recipes.look.evaluate import evaluate
from limbeck.recipes.look.options import EvaluateConfig
from limbeck.recipes.run.options import FinetuneConfig
from limbeck.recipes.train.finetune import check, finetune, report
from limbeck.recipes.train.tuning import build_classifier, tuning_stream
from tests.recipes.runs import finetune_config, metrics_of, snapshot, weights_of

TEACHERS = "tests.recipes.own_teachers"


@pytest.fixture(scope="session")
def classifier(images, student, tmp_path_factory):
    """A finished fine-tuning of the distilled student."""
    out = tmp_path_factory.mktemp("classifier") / "run"
    return finetune(longer(finetune_config(images, out, student)))


def longer(config):
    """24 steps on plain views: enough for three colours."""
    return replace(
        config,
        views=ViewOptions(scale=(0.5, 1.0)),
        mix=MixOptions(),
        drop_path_rate=0.1,
        optim=replace(config.optim, base_lr=5e-2),
        train=replace(config.train, epochs=12),
    )


def test_the_loss_falls_and_the_classes_are_learnt(classifier):
    steps, probes = metrics_of(classifier)
    assert len(steps) == 24
    assert set(steps[0]["losses"]) == {"total", "class"}
    assert steps[-1]["losses"]["total"] < 0.7 * steps[0]["losses"]["total"]
    assert set(probes[-1]["probe"]) == {"top1", "top5"}
    assert probes[-1]["probe"]["top1"] > 0.8  # chance is a third
    assert probes[-1]["probe"]["top5"] == 1  # of three classes


def test_timm_alone_loads_the_classifier_and_says_the_same(classifier):
    record = json.loads((classifier / "student.json").read_text())
    model = timm.create_model(record["timm"]["name"], **record["timm"]["kwargs"]).eval()
    model.load_state_dict(
        safetensors.torch.load_file(classifier / "student.safetensors"), strict=True
    )
    for path, values in record["timm"]["heads"].items():
        vars(model.get_submodule(path)).update(values)
    encoder = limbeck.load(classifier)
    assert encoder.facts.num_classes == 3
    assert encoder.facts.num_heads == (3, 4)  # as distilled
    pixels = torch.rand(2, 3, 32, 32)
    mean, std = (
        torch.tensor(record["preprocessing"][name]).view(3, 1, 1) for name in ("mean", "std")
    )
    logits = limbeck.Tap("logits")
    with torch.no_grad():
        said = encoder(pixels, taps=(logits,)).taps[logits]
        torch.testing.assert_close(said, model((pixels - mean) / std), atol=1e-6, rtol=1e-5)


def test_what_the_record_and_the_report_say(classifier, student):
    record = json.loads((classifier / "student.json").read_text())
    assert record["made_by"] == "limbeck finetune"
    assert record["classes"] == ["blue", "green", "red"]
    assert record["student"]["weight_hash"] == limbeck.load(student).facts.origin["weight_hash"]
    assert record["scores"] == metrics_of(classifier)[1][-1]["probe"]
    top1 = record["scores"]["top1"]
    said = report(classifier)
    assert f"top1 {100 * top1:.1f} %, top5 100.0 %." in said
    num_test = record["data"]["num_holdout"]
    assert f"{num_test} held-out images can't tell much: each is {100 / num_test:.3g}" in said
    assert f"limbeck evaluate --student {classifier} --data" in said


def test_the_same_again_changes_nothing(classifier, images, student):
    before = snapshot(classifier)
    finetune(longer(finetune_config(images, classifier, student)))
    assert snapshot(classifier) == before
    with pytest.raises(UserError, match="holds another run: seed is 0 there and 1 here"):
        finetune(longer(finetune_config(images, classifier, student, seed=1)))
    assert snapshot(classifier) == before


def test_stopped_and_continued_ends_the_same(images, student, tmp_path):
    """Lost after step 5, it goes on from the checkpoint of step 3."""
    config = finetune_config(images, tmp_path / "whole", student, seed=3)
    config = replace(config, train=replace(config.train, save_every=3))
    whole = finetune(config)
    part = replace(config, out=tmp_path / "part")

    class Cut(Exception):
        pass

    with pytest.raises(Cut):
        _cut_after(part, 5, Cut)
    assert not (part.out / "student.safetensors").exists()
    assert weights_of(finetune(part)) == weights_of(whole)


def _cut_after(config, step, kind):
    """Run until the log is told of a step, and then fail as a lost machine would."""
    from limbeck.engine.log import Log

    class CutLog(Log):
        def add_step(self, now, **values):
            super().add_step(now, **values)
            if now == step:
                raise kind

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("limbeck.recipes.run.train.Log", CutLog)
        finetune(config)


def test_the_full_recipe_runs(images, student, tmp_path):
    """The defaults: RandAugment, mixup, cutmix, erasing, smoothing, layer decay; and EMA."""
    config = finetune_config(images, tmp_path / "run", student)
    assert config.views.rand_augment
    assert config.mix.mixup_alpha and config.mix.cutmix_alpha and config.mix.label_smoothing
    config = replace(
        config,
        optim=replace(config.optim, layer_decay=0.65),
        train=replace(config.train, ema_decay=0.9, precision="bf16", accumulate_steps=2),
    )
    run = finetune(config)
    assert all(torch.isfinite(value).all() for value in limbeck.load(run).state_dict().values())


@pytest.fixture(scope="session")
def star(images, student, classifier, tmp_path_factory):
    """A finished TinyMIM* that learned from the classifier."""
    out = tmp_path_factory.mktemp("star") / "run"
    return finetune(taught(longer(finetune_config(images, out, student)), classifier))


def taught(config, teacher):
    """The student as a TinyMIM*, with a teacher."""
    teacher = TeacherOptions(source=str(teacher), precision="fp32")
    return replace(config, head="tinymim-star", teacher=teacher)


def test_a_tinymim_star_learns_from_labels_and_a_teacher(star, classifier):
    steps, probes = metrics_of(star)
    assert all(set(step["losses"]) == {"total", "class", "logit"} for step in steps)
    first, last = steps[0]["losses"], steps[-1]["losses"]
    assert first["class"] + first["logit"] == pytest.approx(first["total"])
    assert last["class"] < 0.7 * first["class"] and last["logit"] < 0.7 * first["logit"]
    assert probes[-1]["probe"]["top1"] > 0.8  # chance is a third
    record = json.loads((star / "student.json").read_text())
    teacher_hash = limbeck.load(classifier).facts.origin["weight_hash"]
    assert record["teacher"]["weight_hash"] == teacher_hash
    assert record["scores"] == probes[-1]["probe"]
    assert record["timm"] is None
    fingerprint = json.loads((star / "fingerprint.json").read_text())
    assert fingerprint["teacher"]["weights"] == teacher_hash


def test_a_finished_tinymim_star_loads_is_evaluated_and_fine_tuned_again(
    images, star, tmp_path, caplog
):
    encoder = limbeck.load_encoder(star)
    assert isinstance(encoder.model, TinyMimStar)
    assert encoder.facts.num_heads == (3, 4)  # as distilled
    data = DataOptions(root=str(images), holdout_ratio=0.25, num_workers=0)
    found = evaluate(EvaluateConfig(student=(str(star),), data=data, out=tmp_path / "scores"))
    assert found.rows[0].scores["top1"].mean > 0.8
    config = finetune_config(images, tmp_path / "again", star, img_size=64)
    again = limbeck.load(finetune(replace(config, train=replace(config.train, epochs=0.5))))
    assert again.facts.architecture["kind"] == "tinymim-star"
    assert again.facts.grid == (8, 8)
    assert "No --teacher is named, so the labels teach the distillation head" in caplog.text


@pytest.mark.parametrize(
    ("head", "logit"),
    [
        (None, LogitOptions()),
        (None, LogitOptions(kind="soft", temperature=2.0, weight=0.4)),
        ("distilled", LogitOptions(kind="soft")),
    ],
)
def test_a_teacher_helps_other_heads_too(images, student, classifier, tmp_path, head, logit):
    config = taught(finetune_config(images, tmp_path / "run", student), classifier)
    train = replace(config.train, epochs=0.5, accumulate_steps=2)
    run = finetune(replace(config, head=head, logit=logit, train=train))
    (losses,) = (step["losses"] for step in metrics_of(run)[0])
    assert losses["class"] > 0 and losses["logit"] > 0
    assert limbeck.load(run).facts.has_dist_head == (head is not None)


def test_stopped_and_continued_with_a_teacher_ends_the_same(images, student, classifier, tmp_path):
    config = taught(finetune_config(images, tmp_path / "whole", student, seed=3), classifier)
    config = replace(config, train=replace(config.train, epochs=2, save_every=2))
    whole = finetune(config)
    part = replace(config, out=tmp_path / "part")

    class Cut(Exception):
        pass

    with pytest.raises(Cut):
        _cut_after(part, 3, Cut)
    assert weights_of(finetune(part)) == weights_of(whole)
    other = replace(part, teacher=TeacherOptions(source=str(whole), precision="fp32"))
    with pytest.raises(UserError, match="holds another run: fingerprint of teacher"):
        finetune(other)


class Stop(Exception):
    pass


def parts_of_fit(config):
    """The module that the recipe would train, its batches, optimiser and layers."""
    from limbeck.engine.optim import build_optimizer

    found = []

    def catch(module, batches, **values):
        layers = values["layer_id"], values["num_layers"]
        found.extend([module, batches, build_optimizer(module, values["optim"], *layers)])
        raise Stop

    with pytest.MonkeyPatch.context() as patch, pytest.raises(Stop):
        patch.setattr("limbeck.recipes.run.train.fit", catch)
        finetune(config)
    return found


@pytest.mark.parametrize(
    ("head", "is_taught", "learners"),
    [
        ("tinymim-star", True, ["head"]),
        ("distilled", True, ["head"]),
        ("distilled", False, ["head", "head_dist"]),
        ("single", True, ["head"]),
    ],
)
def test_which_head_the_labels_teach(
    images, student, classifier, tmp_path, head, is_taught, learners
):
    """Other labels change the gradients of the heads that learn from them, and of no other."""
    config = taught(finetune_config(images, tmp_path / "run", student), classifier)
    config = replace(config, head=head, mix=MixOptions(), drop_path_rate=0.0)
    if not is_taught:
        config = replace(config, teacher=TeacherOptions())
    module, batches, _ = parts_of_fit(config)
    batch = next(batches(0))
    gradients = []
    for labels in (batch.labels, batch.labels.flip(1)):
        module.zero_grad()
        module(replace(batch, labels=labels)).total.backward()
        gradients.append(
            {
                name.split(".")[-2]: parameter.grad.clone()
                for name, parameter in module.named_parameters()
                if name.endswith(("model.head.weight", "model.head_dist.weight"))
            }
        )
    first, second = gradients
    assert first.keys() == ({"head"} if head == "single" else {"head", "head_dist"})
    assert all(gradient.abs().sum() > 0 for gradient in first.values())
    assert [name for name in first if not torch.equal(first[name], second[name])] == learners


def test_the_optimiser_s_groups_of_a_student_with_a_teacher(images, student, classifier, tmp_path):
    config = taught(finetune_config(images, tmp_path / "run", student), classifier)
    optim = replace(FinetuneConfig().optim, layer_decay=0.5)
    module, _, optimizer = parts_of_fit(replace(config, optim=optim))
    groups = {id(p): group for group in optimizer.param_groups for p in group["params"]}
    parameters = dict(module.student.model.named_parameters())
    assert groups.keys() == {id(p) for p in parameters.values()}
    for name, layer, is_decayed in (
        ("dist_token", 0, False),
        ("patch_embed.proj.weight", 0, True),
        ("blocks.1.attn.qkv.weight", 2, True),
        ("conv1x1.1.weight", 3, True),
        ("fc_norm.weight", 3, False),
        ("head_dist.weight", 3, True),
    ):
        group = groups[id(parameters[name])]
        assert group["lr_scale"] == 0.5 ** (3 - layer), name
        assert (group["weight_decay"] > 0) == is_decayed, name


OWN = '''
import torch
import limbeck
from limbeck.config import options


@options
class OwnOptions:
    """Options."""

    power: float = 2.0


class Own(limbeck.Method):
    """The mean distance of the logits after a layer of its own."""

    Options = OwnOptions
    task_weight, own_weight = 0.75, 0.25
    student_taps = teacher_taps = (limbeck.Tap("logits"),)

    def __init__(self, options, student, teacher):
        super().__init__()
        self.power = options.power
        self.proj = torch.nn.Linear(student.num_classes, teacher.num_classes)

    def forward(self, student, teacher, batch):
        (own,), (target,) = student.taps.values(), teacher.taps.values()
        loss = (self.proj(own) - target).abs().pow(self.power).mean()
        return limbeck.Losses(total=loss, parts={"own": loss.detach()})


class Plain(Own):
    Options = limbeck.Method.Options
'''


@pytest.fixture
def own(tmp_path, monkeypatch):
    """A user's own module ``own_finetune_method``."""
    (tmp_path / "own_finetune_method.py").write_text(OWN)
    monkeypatch.syspath_prepend(tmp_path)
    return "own_finetune_method"


def test_an_own_method_with_weights_of_its_own(images, student, tmp_path, own):
    config = taught(finetune_config(images, tmp_path / "run", student), f"{TEACHERS}:convnet")
    config = replace(config, method=f"{own}:Own", method_options=("power=1.0",), head="distilled")
    config = replace(config, optim=FinetuneConfig().optim)
    assert config.optim.layer_decay < 1
    module, batches, optimizer = parts_of_fit(config)
    assert module.method.power == 1
    assert module.student_taps == (limbeck.Tap("logits"),)  # both heads learn from both
    groups = {id(p): group for group in optimizer.param_groups for p in group["params"]}
    assert groups[id(module.method.proj.weight)]["lr_scale"] == 1
    losses = module(next(batches(0)))
    losses.total.backward()
    assert all(p.grad is not None for p in module.parameters())
    assert set(losses.parts) == {"class", "own"}
    with pytest.raises(UserError, match="MethodOptions of Plain are MethodOptions, which are for"):
        finetune(replace(config, method=f"{own}:Plain", method_options=("drop_path_rate=0.1",)))


def test_a_convolutional_network_teaches(images, student, tmp_path):
    config = taught(finetune_config(images, tmp_path / "run", student), f"{TEACHERS}:convnet")
    config = replace(config, head="distilled", teacher=TeacherOptions(source=config.teacher.source))
    run = finetune(replace(config, train=replace(config.train, epochs=0.5)))
    record = json.loads((run / "student.json").read_text())
    assert record["teacher"]["architecture"] == {"kind": "convnet"}
    assert metrics_of(run)[0][0]["losses"]["logit"] > 0


def timm_folder(folder, name="test_resnet", classes=("blue", "green", "red")):
    """A convolutional classifier as timm saves one to the hub, with random weights."""
    folder.mkdir()
    torch.manual_seed(0)
    model = timm.create_model(name, num_classes=len(classes))
    safetensors.torch.save_file(model.state_dict(), folder / "model.safetensors")
    config = {
        "architecture": name,
        "num_classes": len(classes),
        "label_names": list(classes),
        "pretrained_cfg": {"input_size": [3, 48, 48], "num_classes": len(classes)},
    }
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def test_hard_distillation_from_a_convolutional_network_of_timm(images, student, tmp_path):
    """DeiT's, with the class token as the distillation token, as in MAE-Lite."""
    config = finetune_config(images, tmp_path / "run", student)
    config = taught(config, timm_folder(tmp_path / "convnet"))
    teacher = replace(config.teacher, precision="bf16")
    config = replace(config, head="cls-distilled", teacher=teacher)
    run = finetune(replace(config, train=replace(config.train, epochs=0.5)))
    record = json.loads((run / "student.json").read_text())
    assert record["teacher"]["classes"] == ["blue", "green", "red"]
    assert record["teacher"]["architecture"]["name"] == "test_resnet"
    assert metrics_of(run)[0][0]["losses"]["logit"] > 0
    encoder = limbeck.load(run)
    assert encoder.facts.has_dist_head and encoder.facts.num_prefix_tokens == 1
    other = timm_folder(tmp_path / "other", classes=("blue", "red", "green"))
    with pytest.raises(
        UserError, match="Class 1 of the teacher is 'red' and that of the images 'gr"
    ):
        finetune(replace(taught(config, other), out=tmp_path / "2"))


@pytest.mark.parametrize("rel_pos", ["qkv-bias", "qv-bias"])
def test_relative_positions_are_learnt_loaded_and_evaluated(images, student, tmp_path, rel_pos):
    config = finetune_config(images, tmp_path / "run", student, rel_pos=rel_pos, num_heads=4)
    run = finetune(longer(config))
    assert metrics_of(run)[1][-1]["probe"]["top1"] > 0.8  # chance is a third
    encoder = limbeck.load(run)
    table = encoder.model.blocks[0].attn.relative_position_bias_table
    assert table.shape == (52, 4) and table.abs().max() > 0
    record = json.loads((run / "student.json").read_text())
    if rel_pos == "qv-bias":
        model = timm.create_model(record["timm"]["name"], **record["timm"]["kwargs"])
        model.load_state_dict(safetensors.torch.load_file(run / "student.safetensors"))
    else:
        assert record["timm"] is None
    found = inspect_file(run)
    assert found.num_heads == (4, 4) and not found.unmatched
    data = DataOptions(root=str(images), holdout_ratio=0.25, num_workers=0)
    scores = evaluate(EvaluateConfig(student=(str(run),), data=data, measure_speed=False))
    assert scores.rows[0].scores["top1"].mean > 0.8
    again = finetune_config(images, tmp_path / "again", run, img_size=48, drop_path_rate=0.0)
    larger = build_classifier(again, 3)
    assert larger.facts.grid == (6, 6)
    assert larger.model.blocks[0].attn.relative_position_bias_table.shape == (124, 4)


def test_every_batch_is_mixed_by_a_seed_of_its_own_images(monkeypatch):
    config = FinetuneConfig(student="vit_tiny", img_size=32)
    network = build_classifier(config, 3)
    streamed = [SimpleNamespace(view_seeds=torch.tensor([7, 8])),
                SimpleNamespace(view_seeds=torch.tensor([9, 7]))]  # fmt: skip
    monkeypatch.setattr("limbeck.recipes.train.tuning.stream", lambda *_, **__: iter(streamed))
    monkeypatch.setattr("limbeck.recipes.train.tuning.mix", lambda *given, seed: (given, seed))
    mixed = list(tuning_stream(None, network.facts, None, config, None, 0, 2))
    assert [seed for _, seed in mixed] == [7, 9]
    assert [given for given, _ in mixed] == [(batch, config.mix, 3) for batch in streamed]


@pytest.mark.parametrize(("q_pool", "grid"), [(None, (2, 2)), (2, (4, 4))])
def test_a_hiera_pools_as_often_as_asked_and_drops_paths_block_by_block(q_pool, grid):
    config = FinetuneConfig(student="hiera_46", img_size=64, q_pool=q_pool, drop_path_rate=0.11)
    network = build_classifier(config, 3)
    assert network.facts.grid == grid
    for part in ("drop_path1", "drop_path2"):
        rates = [getattr(getattr(block, part), "drop_prob", 0) for block in network.blocks]
        assert rates == pytest.approx([0.01 * block for block in range(12)])


def test_a_part_of_the_labels_with_sgd(images, student, tmp_path):
    """MAE-Lite's transfer to a small set."""
    config = longer(finetune_config(images, tmp_path / "run", student, head_init_std=0.02))
    config = replace(
        config,
        data=replace(config.data, label_fraction=0.5),
        optim=replace(config.optim, optimizer="sgd", base_lr=2.0, weight_decay=0.0, clip_grad=1.0),
        train=replace(config.train, global_batch_size=8),
    )
    run = finetune(config)
    assert metrics_of(run)[1][-1]["probe"]["top1"] > 0.8  # chance is a third
    record = json.loads((run / "student.json").read_text())
    assert record["data"]["label_fraction"] == 0.5
    assert record["data"]["num_train"] < 0.6 * (48 - record["data"]["num_holdout"])
    other = replace(config, data=replace(config.data, label_seed=1))
    with pytest.raises(UserError, match="holds another run: data.label_seed is 0 there and 1 here"):
        finetune(other)


def test_the_head_starts_as_asked_for():
    std = [
        build_classifier(FinetuneConfig(student="vit_tiny", head_init_std=std), 1000)
        .model.head.weight.std()
        .item()
        for std in (0.02, 2e-5)
    ]
    assert std == pytest.approx([0.02, 2e-5], rel=0.01)


def preset(name, **changes):
    config = from_plain(FinetuneConfig, read_preset(name, "finetune"), name)
    return replace(config, **{"student": "vit_tiny", "data": DataOptions(root="."), **changes})


@pytest.mark.parametrize("name", [n for n in preset_names("finetune") if n.startswith("mae_lite")])
def test_the_recipes_of_mae_lite_pass_their_checks(name):
    config = preset(name)
    if name.endswith("distilled"):
        config = replace(config, teacher=TeacherOptions(source="timm:regnety_160.deit_in1k"))
    check(config)
    assert config.num_heads == 12
    peak = peak_lr(config.optim.base_lr, config.train.global_batch_size)
    assert peak == pytest.approx(0.03 if name == "mae_lite_transfer" else 4e-3)
    assert config.optim.min_lr == 1e-6 and config.optim.betas == (0.9, 0.999)


def test_the_recipes_of_mae_lite_build_the_published_sizes():
    sizes = {
        "mae_lite_finetune": ("vit_tiny", 5_717_416),
        "mae_lite_finetune_small": ("vit_small", 22_050_664),
        "mae_lite_finetune_rpe": ("vit_tiny", 5_822_824),
    }
    for name, (student, size) in sizes.items():
        network = build_classifier(preset(name, student=student), 1000)
        assert sum(parameter.numel() for parameter in network.parameters()) == size
        assert set(network.facts.num_heads) == {12}
        norm = network.model.fc_norm
        assert norm.eps == 1e-6 and norm.weight.eq(1).all() and norm.bias.eq(0).all()
        assert network.model.pos_embed.requires_grad


def test_the_learning_rates_of_mae_lites_recipe():
    """Golden number 9: 4e-3, floor 1e-6, 5 of 300 epochs of warm-up at 1251 steps each."""
    config = preset("mae_lite_finetune")
    expected = {1: 6.394884093e-7, 6_255: 4e-3, 190_777: 2.0005085106e-3, 375_300: 1e-6}
    for step, lr in expected.items():
        found = cosine_lr(
            step,
            steps_per_epoch=1251,
            epochs=config.train.epochs,
            warmup_epochs=config.optim.warmup_for(config.train.epochs),
            peak_lr=peak_lr(config.optim.base_lr, config.train.global_batch_size),
            min_lr=config.optim.min_lr,
        )
        assert found == pytest.approx(lr, rel=1e-9)


def test_another_teacher_is_another_run(images, student, tmp_path):
    def by(source):
        return replace(config, teacher=TeacherOptions(source=source))

    config = finetune_config(images, tmp_path / "run", student)
    config = replace(config, train=replace(config.train, epochs=0.5))
    config = by(f"{TEACHERS}:nameless")
    before = snapshot(finetune(config))
    assert snapshot(finetune(config)) == before
    with pytest.raises(UserError, match="holds another run: fingerprint of teacher.weights is"):
        finetune(by(f"{TEACHERS}:unknown"))
    with pytest.raises(UserError, match="fingerprint of teacher is absent there and null here"):
        finetune(by(None))


def test_a_moved_teacher_is_the_same_and_one_with_other_heads_is_not(
    images, student, classifier, tmp_path
):
    config = taught(finetune_config(images, tmp_path / "run", student), classifier)
    config = replace(config, train=replace(config.train, epochs=0.5))
    before = snapshot(finetune(config))
    moved = shutil.copytree(classifier, tmp_path / "moved")
    assert snapshot(finetune(taught(config, moved))) == before
    record = json.loads((moved / "student.json").read_text())
    record["architecture"]["num_heads"] = [2, 2]
    (moved / "student.json").write_text(json.dumps(record))
    with pytest.raises(UserError, match="holds another run: fingerprint of teacher.num_heads is"):
        finetune(taught(config, moved))


def test_a_weights_file_of_an_unusual_width(images, student, tmp_path):
    file = shutil.copy(student / "student.safetensors", tmp_path / "odd.safetensors")
    config = finetune_config(images, tmp_path / "run", file)
    with pytest.raises(UserError, match="a width of 24 does not tell it .* finetune's --num-heads"):
        build_classifier(config, 3)
    assert build_classifier(replace(config, num_heads=4), 3).facts.num_heads == (4, 4)


def test_a_teacher_that_only_saw_unlabelled_images_is_refused(images, student, tmp_path):
    config = taught(finetune_config(images, tmp_path / "run", student), student)
    with pytest.raises(UserError, match="has no classifier; fine-tune it first"):
        finetune(config)
    assert not (tmp_path / "run").exists()


def test_from_scratch_by_a_bare_name(images, tmp_path):
    config = finetune_config(images, tmp_path / "run", "vit_tiny", img_size=32)
    run = finetune(replace(config, train=replace(config.train, epochs=0.5)))
    record = json.loads((run / "student.json").read_text())
    assert record["student"]["source"] == "fresh, seed 0"
    assert limbeck.load(run).facts.embed_dim == 192
    assert limbeck.load(run).facts.grid == (2, 2)


def test_head_counts_image_size_and_pooling(images, student, tmp_path):
    config = finetune_config(
        images, tmp_path, student, num_heads=2, img_size=64, global_pool="token", drop_path_rate=0.2
    )
    network = build_classifier(config, 3)
    assert network.facts.num_heads == (2, 2)
    assert network.facts.grid == (8, 8)
    assert network.model.global_pool == "token"
    assert network.training
    rates = [getattr(block.drop_path1, "drop_prob", 0) for block in network.model.blocks]
    assert rates == [0, 0.2]


def test_a_classifier_keeps_the_student_s_weights(images, student, tmp_path):
    network = build_classifier(finetune_config(images, tmp_path, student, drop_path_rate=0.0), 3)
    encoder = limbeck.load(student)
    set_drop_path(network, [0.0, 0.0])
    own = network.model.state_dict()
    for name, value in encoder.model.state_dict().items():
        if not name.startswith("norm."):
            assert torch.equal(own[name], value), name


def test_only_the_first_blocks_are_kept(images, student, tmp_path):
    config = finetune_config(images, tmp_path, student, keep_blocks=1)
    model, own = build_classifier(config, 3).model.state_dict(), limbeck.load(student)
    own = own.model.state_dict()
    assert model["blocks.0.mlp.fc1.weight"].equal(own["blocks.0.mlp.fc1.weight"])
    assert not model["blocks.1.mlp.fc1.weight"].equal(own["blocks.1.mlp.fc1.weight"])
    assert model["patch_embed.proj.weight"].equal(own["patch_embed.proj.weight"])


def test_one_held_out_image_is_scored(images, student, tmp_path):
    data = DataOptions(root=str(images), holdout_ratio=0.5, max_holdout=1, num_workers=0)
    run = finetune(finetune_config(images, tmp_path / "run", student, data=data))
    assert json.loads((run / "student.json").read_text())["scores"]["top1"] in (0, 1)


def test_unlabelled_images_are_refused(unlabelled, student, tmp_path):
    with pytest.raises(UserError, match="has no labels; fine-tuning needs class sub-folders"):
        finetune(finetune_config(unlabelled, tmp_path / "run", student))
    assert not (tmp_path / "run").exists()


def test_nothing_held_out_is_refused_before_the_run(images, student, tmp_path):
    data = DataOptions(root=str(images), holdout_ratio=0.0, num_workers=0)
    with pytest.raises(UserError, match="is held out to score on; raise --data.holdout-ratio"):
        finetune(finetune_config(images, tmp_path / "run", student, data=data))
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"student": ""}, "No student is named; pass --student RUN_FOLDER, or a timm name"),
        ({"student": "vit_tyni"}, "Did you mean 'vit_tiny'?"),
        ({"student": "no/such/run"}, "no/such/run"),
        ({"mix": MixOptions(mix_prob=0.5)}, "mix.mix_prob and mix.switch_prob have no effect"),
        ({"data": DataOptions()}, "No images are named"),
        ({"teacher": TeacherOptions(img_size=64)}, "Options of --teacher have no effect without"),
        ({"logit": LogitOptions(kind="soft")}, "Options of --logit have no effect without"),
        ({"method": "logits"}, "Did you mean 'logit'?"),
        ({"method": "no_module:Own"}, "there is no module 'no_module' here"),
        ({"method": "limbeck:Own"}, "--method limbeck:Own has no effect without --teacher"),
        ({"method_options": ("a=1",)}, "the options of logit are --logit.NAME"),
        ({"layer_scale": 0.1}, "layer_scale has no effect without --rel-pos"),
        (
            {"head": "distilled", "rel_pos": "qv-bias"},
            "rel_pos is for a single head, not distilled",
        ),
        (
            {"optim": OptimOptions(optimizer="sgd", eps=1e-3)},
            "optim.eps has no effect with optim.optimizer",
        ),
        ({"head": "distilled", "global_pool": "avg"}, "has only token pooling, not avg"),
        ({"head": "tinymim-star", "global_pool": "token"}, "has only avg pooling, not token"),
        ({"keep_blocks": 1}, "keep_blocks has no effect with vit_tiny, which starts from scratch"),
    ],
)
def test_what_check_refuses(images, tmp_path, changes, message):
    with pytest.raises(UserError) as caught:
        check(replace(finetune_config(images, tmp_path, "vit_tiny"), **changes))
    assert message in str(caught.value)


def test_a_shape_in_the_name_starts_from_scratch(images, tmp_path):
    name = "vit_tiny:img_size=32:patch_size=8:embed_dim=24:depth=1:num_heads=3"
    run = finetune(finetune_config(images, tmp_path / "run", name))
    facts = limbeck.load(run).facts
    assert (facts.embed_dim, facts.depth, facts.num_heads) == (24, 1, (3,))
    with pytest.raises(UserError, match="embed_dim 25 does not divide"):
        check(finetune_config(images, tmp_path / "run", name.replace("=24", "=25")))
