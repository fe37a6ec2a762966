"""G2SD's second stage: its preset to the last value, and the way from a student to a classifier."""

import json
from dataclasses import replace
from functools import partial

import pytest
import torch

import limbeck
from limbeck.cli import main
from limbeck.config import from_plain, read_preset
from limbeck.data.options import DataOptions, MixOptions, ViewOptions
from limbeck.engine.optim import build_optimizer, set_lr
from limbeck.engine.options import OptimOptions
from limbeck.errors import UserError
from limbeck.methods.distiller import Distiller
from limbeck.methods.logit import Logit
from limbeck.methods.options import LogitOptions, NkdOptions
from limbeck.methods.teacher import Teacher
from limbeck.models.build import build_student
from limbeck.models.distilled_last import DistilledLastVit
from limbeck.models.heads import with_classifier
from limbeck.models.options import StudentOptions, TeacherOptions
from limbeck.models.origins.inspection import inspect_file
from limbeck.ops.schedules import cosine_lr, peak_lr
from limbeck.recipes.look.analyze import analyze
from limbeck.recipes.look.evaluate import evaluate
from limbeck.recipes.look.options import AnalyzeConfig, EvaluateConfig
from limbeck.recipes.run.networks import layer_of
from limbeck.recipes.run.options import FinetuneConfig
from limbeck.recipes.run.resolved import resolve
from limbeck.recipes.ship.convert import ConvertConfig, convert
from limbeck.recipes.train.finetune import check, finetune
from limbeck.recipes.train.tuning import build_classifier
from limbeck.records import Batch, Tap
from limbeck.tasks.classification import Classification
from tests.end_to_end.commands import train_words
from tests.fakes import FakeEncoder
from tests.models.origins import writers
from tests.recipes.runs import finetune_config, metrics_of, snapshot, weights_of
from tests.recipes.train.test_finetune import _cut_after, timm_folder

CPU = torch.device("cpu")
LOGITS, CLASS, DIST = (Tap(kind) for kind in ("logits", "class_logits", "dist_logits"))


def preset(name, **changes):
    config = from_plain(FinetuneConfig, read_preset(name, "finetune"), name)
    return replace(config, **changes)


def small(images, out, student, teacher, **changes):
    """The preset's heads and optimiser, and a run of two steps."""
    own = preset("g2sd_specific")
    base = finetune_config(images, out, student)
    return replace(
        base,
        head=own.head,
        dist_head_init_std=own.dist_head_init_std,
        drop_path_rate=own.drop_path_rate,
        logit=own.logit,
        mix=own.mix,
        views=ViewOptions(scale=(0.5, 1.0)),
        optim=replace(own.optim, base_lr=1e-2, warmup_epochs=0.1),
        train=replace(base.train, epochs=1),
        teacher=TeacherOptions(source=str(teacher), precision="fp32"),
        **changes,
    )


def test_the_preset_is_the_released_command():
    config = preset("g2sd_specific")
    assert config.views == ViewOptions(
        scale=(0.08, 1.0), rand_augment="rand-m9-mstd0.5-inc1", erase_prob=0.25
    )
    assert (config.views.ratio, config.views.flip_prob) == ((3 / 4, 4 / 3), 0.5)
    assert config.views.interpolation == "bicubic"
    assert config.mix == MixOptions(mixup_alpha=0.8, cutmix_alpha=1.0, label_smoothing=0.1)
    assert (config.mix.mix_prob, config.mix.switch_prob) == (1.0, 0.5)
    assert config.optim == OptimOptions(
        base_lr=1e-3,
        min_lr=1e-6,
        warmup_epochs=5,
        weight_decay=0.05,
        betas=(0.9, 0.999),
        layer_decay=0.75,
        no_decay_names=("pos_embed", "cls_token"),
    )
    assert (config.optim.eps, config.optim.clip_grad) == (1e-8, None)
    assert (config.train.epochs, config.train.global_batch_size) == (200, 1024)
    assert config.train.ema_decay is None
    assert (config.head, config.global_pool, config.num_heads) == ("distilled-last", None, None)
    assert (config.head_init_std, config.dist_head_init_std) == (2e-5, 0.02)
    assert config.drop_path_rate == 0
    assert config.evaluation.crop_ratio == 224 / 256
    assert (config.method, config.logit.kind, config.logit.weight) == ("logit", "hard", None)
    facts = FakeEncoder(num_prefix_tokens=2, has_dist_head=True).facts
    assert Logit(config.logit, facts, facts).own_weight == 0.5


def test_the_preset_of_the_teachers_own_fine_tuning():
    config = preset("mae_finetune_vit_base")
    assert (config.train.epochs, config.train.global_batch_size) == (100, 1024)
    assert peak_lr(config.optim.base_lr, 1024) == 2e-3
    assert (config.optim.layer_decay, config.optim.warmup_epochs) == (0.65, 5)
    assert (config.optim.weight_decay, config.drop_path_rate) == (0.05, 0.1)
    assert config.mix == MixOptions(mixup_alpha=0.8, cutmix_alpha=1.0, label_smoothing=0.1)
    assert config.views.erase_prob == 0.25 and config.views.rand_augment
    assert config.global_pool == "avg" and config.head is None


def test_the_learning_rates_and_the_updates_of_the_recipe():
    """Golden row 8: 0, 2e-3, 4e-3, ... at e = 0, 2.5, 5, 102.5, 199, 200; 250,200 updates."""
    config = preset("g2sd_specific")
    done = resolve(1_281_167, 224, {}, config.optim, config.train)
    assert (done.steps_per_epoch, done.total_steps) == (1251, 250_200)
    assert done.peak_lr == pytest.approx(4e-3)
    expected = {0: 0, 2.5: 2e-3, 5: 4e-3, 102.5: 2.0005e-3, 199: 1.259485e-6, 200: 1e-6}
    for epoch, lr in expected.items():
        found = cosine_lr(
            round(epoch * 1000),
            steps_per_epoch=1000,  # half epochs are whole steps
            epochs=config.train.epochs,
            warmup_epochs=config.optim.warmup_for(config.train.epochs),
            peak_lr=done.peak_lr,
            min_lr=config.optim.min_lr,
        )
        assert found == pytest.approx(lr, rel=1e-6), epoch


@pytest.mark.parametrize(
    ("decay", "golden"),
    [
        (0.75, {0: 0.023757, 1: 0.031676, 2: 0.042235, 6: 0.133484, 12: 0.75, 13: 1}),
        (0.70, {0: 0.009689, 1: 0.013841, 2: 0.019773, 6: 0.082354, 12: 0.7, 13: 1}),
        (0.65, {0: 0.003697, 1: 0.005688, 2: 0.008751, 6: 0.049022, 12: 0.65, 13: 1}),
    ],
)
def test_the_groups_of_the_real_optimiser(decay, golden):
    """Golden row 7, and which tensor is in which layer, decayed or not: 28 groups."""
    shape = StudentOptions(
        name="vit_tiny", img_size=32, patch_size=16, embed_dim=24, depth=12, num_heads=3
    )
    student = with_classifier(build_student(shape, seed=0), 5, None, 0, head="distilled-last")
    optim = replace(preset("g2sd_specific").optim, layer_decay=decay)
    facts = student.facts
    method = Logit(LogitOptions(), facts, facts)
    module = Distiller(student, method, None, Classification(student, CLASS))
    optimizer = build_optimizer(module, optim, partial(layer_of, student), facts.depth)
    assert len(optimizer.param_groups) == 28
    set_lr(optimizer, 4e-3)
    of = {id(p): group for group in optimizer.param_groups for p in group["params"]}
    parameters = dict(student.model.named_parameters())
    assert of.keys() == {id(p) for p in parameters.values()}
    layers = {
        **dict.fromkeys(("cls_token", "pos_embed", "patch_embed.proj.weight"), 0),
        **{f"blocks.{layer - 1}.attn.qkv.weight": layer for layer in (1, 2, 6, 12)},
        **dict.fromkeys(("dist_token", "norm.weight", "head.weight", "head_dist.bias"), 13),
    }
    for name, layer in layers.items():
        group = of[id(parameters[name])]
        assert group["lr_scale"] == pytest.approx(golden[layer], abs=6e-7), name
        assert group["lr"] == pytest.approx(4e-3 * group["lr_scale"]), name
    decayed = {name for name, p in parameters.items() if of[id(p)]["weight_decay"]}
    assert {"dist_token", "head_dist.weight", "patch_embed.proj.weight"} <= decayed
    assert not decayed & {"cls_token", "pos_embed", "norm.weight", "head.bias"}


def test_the_total_is_equal_halves_and_no_smoothing_reaches_the_token():
    """1/2 CE(head, soft label) + 1/2 CE(head_dist, argmax of the teacher on the mixed image)."""
    shape = StudentOptions(
        name="vit_tiny", img_size=32, patch_size=8, embed_dim=32, depth=2, num_heads=2
    )
    student = with_classifier(
        build_student(shape, seed=0), 5, None, 0, head="distilled-last", head_init_std=0.2
    ).eval()
    teacher = with_classifier(build_student(shape, seed=1), 5, "avg", 1, head_init_std=0.2).eval()
    method = Logit(preset("g2sd_specific").logit, student.facts, teacher.facts)
    assert (method.task_weight, method.own_weight) == (0.5, 0.5)
    module = Distiller(
        student, method, Teacher(teacher, CPU, "fp32"), Classification(student, CLASS)
    )
    images, others = torch.rand(2, 6, 3, 32, 32)
    labels = torch.full((6, 5), 0.02)
    labels[:, 1], labels[:, 3] = 0.62, 0.32
    losses = module(Batch(images, others, labels, tuple("abcdef"), torch.arange(6)))
    with torch.no_grad():
        said = student(images, taps=(CLASS, DIST, LOGITS)).taps
        target = teacher(images, taps=(LOGITS,)).taps[LOGITS].argmax(-1)
    assert len(set(target.tolist())) > 1
    of_label = of_teacher = 0.0
    for row in range(6):
        of_label -= (labels[row] * said[CLASS][row].log_softmax(-1)).sum() / 6
        of_teacher -= said[DIST][row].log_softmax(-1)[target[row]] / 6
    torch.testing.assert_close(losses.parts["class"], of_label / 2)
    torch.testing.assert_close(losses.parts["logit"], of_teacher / 2)
    torch.testing.assert_close(losses.total, (of_label + of_teacher) / 2)
    torch.testing.assert_close(said[LOGITS], (said[CLASS] + said[DIST]) / 2)
    # The mean of the softmaxes would be another thing.
    probs = (said[CLASS].softmax(-1) + said[DIST].softmax(-1)) / 2
    assert not torch.allclose(said[LOGITS].softmax(-1), probs, atol=1e-3)


@pytest.fixture(scope="session")
def specific(images, student, classifier, tmp_path_factory):
    """A finished second stage; its teacher is a run of finetune."""
    out = tmp_path_factory.mktemp("specific") / "run"
    return finetune(small(images, out, student, classifier))


def test_a_run_of_the_second_stage_loads_and_says_where_it_comes_from(
    specific, student, classifier
):
    losses = [step["losses"] for step in metrics_of(specific)[0]]
    assert all(set(each) == {"total", "class", "logit"} for each in losses)
    assert losses[0]["class"] + losses[0]["logit"] == pytest.approx(losses[0]["total"])
    record = json.loads((specific / "student.json").read_text())
    assert record["timm"] is None and record["architecture"]["kind"] == "distilled-last"
    source = limbeck.load(classifier).facts.origin["weight_hash"]
    assert record["teacher"]["weight_hash"] == source
    assert record["student"]["weight_hash"] == limbeck.load(student).facts.origin["weight_hash"]
    encoder = limbeck.load_encoder(specific)
    assert isinstance(encoder.model, DistilledLastVit)
    assert encoder.facts.num_heads == (3, 4)  # as distilled
    start = limbeck.load(student).model.state_dict()
    own = encoder.model.state_dict()
    assert own["pos_embed"].shape == start["pos_embed"].shape
    assert not own["pos_embed"].equal(start["pos_embed"])  # fixed in the first stage, trained here
    assert not own["dist_token"].eq(0).all()


def test_it_is_evaluated_and_inspected(specific, images, tmp_path):
    data = DataOptions(root=str(images), holdout_ratio=0.25, num_workers=0)
    found = evaluate(
        EvaluateConfig(student=(str(specific),), data=data, out=tmp_path / "e", measure_speed=False)
    )
    told = json.loads((specific / "student.json").read_text())["scores"]
    assert found.rows[0].scores["top1"].mean == pytest.approx(told["top1"])
    seen = inspect_file(specific)
    assert (seen.num_prefix_tokens, seen.num_classes, seen.num_heads) == (2, 3, (3, 4))
    assert not seen.unmatched


def test_it_is_analysed(specific, images, tmp_path):
    data = DataOptions(root=str(images), holdout_ratio=0.25, num_workers=0)
    done = analyze(
        AnalyzeConfig(
            runs=(str(specific),), data=data, out=tmp_path / "a", device="cpu",
            parts=("similarity", "attention"), num_images=8,
        )
    )  # fmt: skip
    assert set(done.found["parts"]) == {"similarity", "attention"}
    ((pair,),) = [done.found["parts"]["similarity"]]
    assert len(pair["cka"]) == 3  # two blocks and the output


def test_what_maes_layout_can_not_hold_is_said(specific, tmp_path):
    out = tmp_path / "mae.pth"
    with pytest.raises(UserError, match="can't hold .*: vit_distilled_last is no plain ViT"):
        convert(ConvertConfig(source=str(specific), out=str(out)))
    assert not out.exists()


def test_the_same_again_changes_nothing_and_stopped_it_ends_the_same(
    specific, images, student, classifier, tmp_path
):
    before = snapshot(specific)
    config = small(images, specific, student, classifier)
    finetune(config)
    assert snapshot(specific) == before
    part = replace(config, out=tmp_path / "part", train=replace(config.train, save_every=1))

    class Cut(Exception):
        pass

    with pytest.raises(Cut):
        _cut_after(part, 2, Cut)  # after it saved step 1
    assert any(part.out.glob("**/*.pt")) and not (part.out / "student.safetensors").exists()
    assert weights_of(finetune(part)) == weights_of(specific)


def test_other_heads_than_its_own_are_refused(specific, images, classifier, tmp_path):
    config = small(images, tmp_path / "run", specific, classifier)
    for head in ("distilled", "single"):
        changed = replace(config, head=head, dist_head_init_std=None)
        with pytest.raises(UserError, match="of kind distilled-last, which can't become"):
            build_classifier(changed, 3)
    again = build_classifier(replace(config, head=None), 3)
    assert isinstance(again.model, DistilledLastVit)


@pytest.mark.parametrize("origin", ["a convolutional network of timm", "MAE's fine-tuned file"])
def test_teachers_of_other_origins(images, student, tmp_path, origin):
    if origin.startswith("MAE"):
        weights = writers.fine_tuned(192, num_classes=3)
        source = writers.save_published(tmp_path / "mae_finetuned.pth", weights)
    else:
        source = timm_folder(tmp_path / "convnet")
    run = finetune(small(images, tmp_path / "run", student, source))
    assert all(step["losses"]["logit"] > 0 for step in metrics_of(run)[0])
    assert limbeck.load(run).facts.has_dist_head


def test_the_commands_of_the_second_stage(images, student, classifier, tmp_path, capsys):
    """The preset by its name; NKD in its place asks for one head."""
    words = ["finetune", "--preset", "g2sd_specific", *train_words(images, tmp_path / "run")]
    words += ["--student", str(student), "--teacher", str(classifier), "--train.epochs", "0.5"]
    words += ["--optim.warmup-epochs", "0.1"]
    main(words)
    assert "Held-out images at the end: top1 " in capsys.readouterr().out
    assert limbeck.load(tmp_path / "run").facts.architecture["kind"] == "distilled-last"
    words += ["--method", "nkd", "--head", "single", "--global-pool", "token"]
    main([*words, "--dist-head-init-std", "None", "--out", str(tmp_path / "nkd")])
    assert set(metrics_of(tmp_path / "nkd")[0][0]["losses"]) == {"total", "nkd"}


def test_nkd_from_the_same_teachers(images, student, classifier, tmp_path):
    config = small(images, tmp_path / "run", student, classifier)
    config = replace(config, method="nkd", nkd=NkdOptions(alpha=0.5))
    with pytest.raises(UserError, match="the student has two heads; choose --head single"):
        finetune(config)
    assert not config.out.exists()
    config = replace(config, head="single", global_pool="token", dist_head_init_std=None)
    run = finetune(config)
    losses = [step["losses"] for step in metrics_of(run)[0]]
    assert all(set(each) == {"total", "nkd"} for each in losses)
    assert all(each["total"] == pytest.approx(each["nkd"]) for each in losses)
    assert not limbeck.load(run).facts.has_dist_head


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"teacher": TeacherOptions(), "method": "nkd"}, "--method nkd has no effect without --te"),
        ({"nkd": NkdOptions(alpha=2.0)}, "Options of --nkd have no effect with --method logit"),
        ({"global_pool": "avg"}, "A distilled-last head has only token pooling, not avg"),
        ({"rel_pos": "qv-bias"}, "rel_pos is for a single head, not distilled-last"),
        ({"head": "single"}, "dist_head_init_std has no effect without a second head"),
        ({"head": None, "student": "vit_tiny"}, "dist_head_init_std has no effect without a seco"),
        ({"keep_head": True, "head": None}, "dist_head_init_std has no effect with keep_head"),
    ],
)
def test_what_check_refuses(images, student, classifier, tmp_path, changes, message):
    config = small(images, tmp_path / "run", student, classifier)
    check(config)
    with pytest.raises(UserError) as caught:
        check(replace(config, **changes))
    assert message in str(caught.value)


def test_a_student_with_one_head_has_no_second_init(images, student, classifier, tmp_path):
    """Which kind it has, only its file says."""
    config = replace(small(images, tmp_path / "run", student, classifier), head=None)
    with pytest.raises(UserError, match="dist_head_init_std is for a second head, and this has on"):
        build_classifier(config, 3)


def test_a_teacher_is_never_in_training():
    """Dropout, drop path and batch norm of a teacher: the same answer twice, and nothing moves."""
    convnet = limbeck.load_encoder("timm:test_resnet", pretrained=False)
    vit = limbeck.load_encoder("timm:test_vit", pretrained=False, drop_rate=0.5, drop_path_rate=0.5)
    student = limbeck.load_encoder("timm:test_vit", pretrained=False)
    for encoder in (convnet, vit):
        encoder.train()
        facts = replace(student.facts, num_classes=encoder.facts.num_classes)
        own = build_student(StudentOptions(name="vit_tiny", img_size=32, depth=1), seed=0)
        own = with_classifier(own, facts.num_classes, None, 0, head="distilled-last")
        teacher = Teacher(encoder, CPU, "fp32")
        method = Logit(LogitOptions(), own.facts, encoder.facts)
        module = Distiller(own, method, teacher, Classification(own, CLASS)).train()
        before = {name: value.clone() for name, value in encoder.state_dict().items()}
        labels = torch.zeros(4, dtype=torch.long)
        one = Batch(torch.rand(4, 3, 32, 32), torch.rand(4, 3, 32, 32), labels, tuple("abcd"),
                    torch.arange(4))  # fmt: skip
        first, second = module(one), module(one)
        assert torch.equal(first.parts["logit"], second.parts["logit"])
        first.total.backward()
        assert not encoder.training
        assert all(parameter.grad is None for parameter in encoder.parameters())
        assert all(torch.equal(before[n], v) for n, v in encoder.state_dict().items())
