"""Every preset's networks and method fit each other; plain ViTs are built narrow, to be quick."""

from dataclasses import replace
from functools import cache

import pytest
import torch

from limbeck.config import PRESETS_DIR, from_plain, preset_names, read_preset
from limbeck.data.options import DataOptions
from limbeck.data.scenes.options import SceneViewOptions
from limbeck.engine.optim import build_optimizer, param_groups
from limbeck.evaluation.options import MapOptions
from limbeck.methods.decoder_feature import DecoderFeature
from limbeck.methods.distiller import Distiller
from limbeck.methods.options import ChannelWiseOptions
from limbeck.models.build import build_student
from limbeck.models.mae import MaeDecoder
from limbeck.models.masked_autoencoder import MaskedAutoencoder
from limbeck.models.options import StudentOptions, TeacherOptions
from limbeck.ops.schedules import cosine_lr, peak_lr, poly_lr
from limbeck.recipes.run.networks import build_networks, method_class, method_options
from limbeck.recipes.run.precision import filled
from limbeck.recipes.run.resolved import resolve
from limbeck.recipes.study import compare, two_stage
from limbeck.recipes.study.arms import arm_config, table_needs_teacher
from limbeck.recipes.study.stages import stage_one_config
from limbeck.recipes.train import detect, distill, finetune, segment
from limbeck.recipes.train.chain import split_chain
from limbeck.recipes.train.options import DetectConfig, SegmentConfig
from limbeck.recipes.train.tuning import build_classifier

DATA = DataOptions(root=str(PRESETS_DIR))  # any folder that is there


@cache
def teacher_of(name, num_classes):
    """A stand-in of the student's family: wide ones of timm can't be downloaded here."""
    if not name.startswith("vit"):
        return build_student(StudentOptions(name=name), num_classes=num_classes, seed=1)
    shape = StudentOptions(name="vit_base", embed_dim=48, num_heads=12, depth=24)
    return build_student(shape, num_classes=num_classes, seed=1)


def with_decoder(encoder):
    """A whole masked autoencoder with eight decoder blocks."""
    facts = encoder.facts
    decoder = MaeDecoder(facts.embed_dim, facts.grid, facts.patch_size, 32, 8, 2, True)
    return MaskedAutoencoder(encoder, decoder)


def networks_of(config):
    options = method_options(config, method_class(config.method))
    student = config.student
    if student.name.startswith("vit"):
        student = replace(student, embed_dim=48)
    teacher = TeacherOptions(source="timm:vit_base_patch16_224") if options.needs_teacher else None
    config = replace(config, data=DATA, student=student, teacher=teacher or TeacherOptions())
    distill.check(config)
    num_classes = 5 if options.trains_classifier else 0

    def load(*_, **__):
        encoder = teacher_of(student.name, num_classes)
        return with_decoder(encoder) if options.reads_decoder else encoder

    nets = build_networks(filled(config, "fp32"), torch.device("cpu"), load)
    assert nets.student.facts.num_classes == num_classes
    return nets


@pytest.mark.parametrize("name", preset_names("distill"))
def test_pre_training(name):
    config = from_plain(distill.DistillConfig, read_preset(name, "distill"), name)
    networks = networks_of(split_chain(config)[0])
    assert networks.method.student_taps
    assert (networks.teacher is not None) == networks.method_options.needs_teacher


@pytest.mark.parametrize("name", preset_names("finetune"))
def test_fine_tuning(name):
    config = from_plain(finetune.FinetuneConfig, read_preset(name, "finetune"), name)
    needs_weights = config.keep_head
    student = config.student or ("timm:tiny_vit_21m_224" if needs_weights else "vit_tiny")
    needs_teacher = config.head is not None  # those with a head for it
    source = "timm:vit_base_patch16_224" if needs_teacher else None
    config = replace(config, data=DATA, student=student, teacher=TeacherOptions(source=source))
    finetune.check(config)


@pytest.mark.parametrize("name", preset_names("segment"))
def test_segmentation(name):
    config = from_plain(SegmentConfig, read_preset(name, "segment"), name)
    data = replace(config.data, root=DATA.root)
    segment.check(replace(config, data=data, student="vit_tiny"))


@pytest.mark.parametrize("name", preset_names("detect"))
def test_detection(name):
    config = from_plain(DetectConfig, read_preset(name, "detect"), name)
    data = replace(config.data, root=DATA.root)
    detect.check(replace(config, data=data, student="vit_tiny"))


@pytest.mark.parametrize("name", preset_names("two-stage"))
def test_two_stages(name):
    config = from_plain(two_stage.TwoStageConfig, read_preset(name, "two-stage"), name)
    teacher = TeacherOptions(source="timm:vit_base_patch16_224.mae")
    config = replace(config, data=replace(config.data, root=DATA.root), teacher=teacher)
    assert two_stage.check(config)
    assert networks_of(stage_one_config(config, 0)).method.student_taps


def test_the_contenders_are_eight_and_the_untrained_one():
    (name,) = preset_names("compare")
    config = from_plain(compare.CompareConfig, read_preset(name, "compare"), name)
    config = replace(config, data=DATA, teacher=TeacherOptions(source="timm:vit_base_patch16_224"))
    arms = compare.check(config)
    built = {
        arm.name: networks_of(arm_config(config, arm, 0, table_needs_teacher(arm)))
        for arm in arms
        if arm.method
    }
    assert {arm.name for arm in arms} - built.keys() == {"untrained", "scratch"}
    kinds = {name: type(networks.method).__name__ for name, networks in built.items()}
    assert kinds == {
        "mae": "MaskedPixel",
        "simmim": "SimMim",
        "moco-v3": "MocoV3",
        "dino": "Dino",
        "d-mae": "AttentionMap",
        "d2-mae": "AttentionMap",
        "tinymim": "Relation",
    }
    coupled, decoupled = (built[name].method for name in ("d-mae", "d2-mae"))
    assert coupled.extra_block is None and coupled.reconstruction.tap.kind == "output"
    assert decoupled.extra_block is not None and decoupled.reconstruction.tap.block == 8


@pytest.mark.parametrize(
    ("name", "decoder", "widths"),
    [("g2sd_vit_small", (256, 4, 8), (384, 6)), ("g2sd_vit_tiny", (128, 4, 4), (192, 3))],
)
def test_generic_distillation_as_released(name, decoder, widths):
    config = from_plain(distill.DistillConfig, read_preset(name, "distill"), name)
    own, optim, train, crop = config.decoder_feature, config.optim, config.train, config.crop
    assert (own.decoder_embed_dim, own.decoder_depth, own.decoder_num_heads) == decoder
    assert (own.target_block, own.mask_ratio, own.beta, own.encoder_weight) == (3, 0.75, 2.0, 0)
    assert (own.positions, own.loss, own.drop_path_rate) == ("all", "smooth-l1", 0)
    assert own.color_jitter == (0, 0, 0)
    assert (crop.scale, crop.interpolation) == ((0.2, 1.0), "bicubic")
    assert (crop.ratio, crop.flip_prob) == ((3 / 4, 4 / 3), 0.5)
    assert (optim.optimizer, optim.betas, optim.eps) == ("adamw", (0.9, 0.95), 1e-8)
    assert (optim.weight_decay, optim.layer_decay, optim.clip_grad) == (0.05, 1, None)
    assert not optim.no_decay_names and not optim.decay_all  # CLS and mask tokens are decayed
    assert train.ema_decay is None
    with torch.device("meta"):
        facts = build_student(config.student, seed=0).facts
    assert (facts.embed_dim, facts.num_heads[0], facts.depth) == (*widths, 12)
    peak = peak_lr(optim.base_lr, train.global_batch_size)
    assert peak == pytest.approx(2.4e-3)
    rates = [
        cosine_lr(
            round(312 * epoch),
            steps_per_epoch=312,
            epochs=train.epochs,
            warmup_epochs=optim.warmup_for(train.epochs),
            peak_lr=peak,
            min_lr=optim.min_lr,
            warmup_lr=optim.warmup_lr,
        )
        for epoch in (0, 5, 10, 155, 299, 300)
    ]
    golden = [0, 1.2e-3, 2.4e-3, 1.20125e-3, 2.570339e-6, 2.5e-6]
    assert rates == pytest.approx(golden, rel=1e-6)


def test_generic_distillation_decays_its_tokens_and_leaves_its_positions():
    """Of the released optimiser: decayed is what has two axes or more, CLS and mask tokens too."""
    config = from_plain(distill.DistillConfig, read_preset("g2sd_vit_tiny", "distill"), "preset")
    with torch.device("meta"):
        student = build_student(config.student, seed=0)
        teacher = replace(student.facts, decoder_depth=8, decoder_dim=512)
        method = DecoderFeature(config.decoder_feature, student.facts, teacher)
        module = Distiller(student, method, None)
        optimizer = build_optimizer(module, config.optim)
    parameters = dict(module.named_parameters())
    of = {id(p): group for group in optimizer.param_groups for p in group["params"]}
    assert {group["lr_scale"] for group in optimizer.param_groups} == {1.0}
    positions = {name for name, p in parameters.items() if id(p) not in of}
    assert positions == {"student.model.pos_embed", "method.decoder.decoder_pos_embed"}
    spared = {n for n, p in parameters.items() if id(p) in of and not of[id(p)]["weight_decay"]}
    assert spared and all(name.endswith(("bias", "norm.weight", "norm1.weight", "norm2.weight"))
                          for name in spared)  # fmt: skip
    tokens = {"student.model.cls_token", "method.decoder.mask_token"}
    assert tokens <= parameters.keys() - positions - spared


def preset(name, **changes):
    kinds = {"finetune": finetune.FinetuneConfig, "segment": SegmentConfig, "detect": DetectConfig}
    verb = next((verb for verb in kinds if name in preset_names(verb)), "distill")
    kind = kinds.get(verb, distill.DistillConfig)
    return replace(from_plain(kind, read_preset(name, verb), name), **changes)


def test_numbers_of_the_small_swin_hiera_and_moco_as_released():
    """Crops, the start of the warm-up, what is not decayed, and the start of the heads."""
    for name in ("swin_48_simmim", "swin_48_d2"):
        config = preset(name)
        assert config.crop.interpolation == "random" and config.crop.scale == (0.67, 1.0)
        assert config.optim.warmup_lr == 2e-6 and config.optim.warmup_epochs == 10
        assert peak_lr(config.optim.base_lr, 2048) == pytest.approx(4e-4)
    moco = preset("moco_v3_vit_tiny")
    assert moco.crop.interpolation == "bilinear"
    assert moco.optim.warmup_lr == 1e-6
    assert peak_lr(moco.optim.base_lr, 1024) == pytest.approx(6e-4)
    assert preset("hiera_46_finetune").head_init_std == 2e-5
    swin = preset("swin_48_finetune", student="swin_48")
    assert swin.head_init_std == 0.02
    network = build_classifier(swin, 10)
    groups = param_groups(network, swin.optim, network.layer_id, network.facts.depth)
    group_of = {id(p): group for group in groups for p in group["params"]}
    scales = {}
    for name, parameter in network.named_parameters():
        group = group_of[id(parameter)]
        is_decayed = parameter.ndim > 1 and "relative_position" not in name
        assert (group["weight_decay"] > 0) == is_decayed, name
        if ".downsample.reduction" in name:
            scales[name] = group["lr_scale"]
    expected = [0.85 ** (13 - layer) for layer in (2, 4, 10)]
    assert list(scales.values()) == pytest.approx(expected)


@pytest.mark.parametrize(
    ("name", "first"), [("swin_48_simmim", 2e-6), ("moco_v3_vit_tiny", 1e-6), ("mae_vit_tiny", 0.0)]
)
def test_where_the_warm_up_starts(name, first):
    config = preset(name)
    peak = peak_lr(config.optim.base_lr, config.train.global_batch_size)
    warmup = round(config.optim.warmup_epochs)
    rates = [
        cosine_lr(
            step, steps_per_epoch=1, epochs=config.train.epochs, warmup_epochs=float(warmup),
            peak_lr=peak, min_lr=0.0, warmup_lr=config.optim.warmup_lr,
        )
        for step in (0, warmup // 2, warmup)
    ]  # fmt: skip
    assert rates == pytest.approx([first, (first + peak) / 2, peak])


MMCV = (1e-10, 6.676618e-8, 4.976567e-5, 9.899708e-5, 9.90625e-5, 5e-5, 6.25e-10)
MMENGINE = (1e-10, 6.681107e-8, 5.003341e-5, 1e-4, 1e-4, 5.047287e-5, 0)


@pytest.mark.parametrize(
    ("name", "head", "layer_decay", "rates"),
    [
        ("tinymim_segment_vit_base", "upernet", 0.75, MMCV),
        ("tinymim_star_segment_vit_tiny", "upernet", 0.8, MMCV),
        ("g2sd_segment", "upernet", 0.65, MMCV),
        ("mae_lite_segment", "semantic-fpn", 0.8, MMENGINE),
    ],
)
def test_segmentations_as_released(name, head, layer_decay, rates):
    """Golden row 6: 160,000 steps of 16 of ADE20K's 20,210 images, and what is the same in all."""
    config = preset(name)
    found = resolve(20_210, 512, {}, config.optim, config.train)
    assert found.total_steps == 160_000 and found.peak_lr == pytest.approx(1e-4)
    for step, rate in zip((0, 1, 750, 1499, 1500, 80_000, 159_999), rates, strict=True):
        lr = poly_lr(
            step,
            steps_per_epoch=found.steps_per_epoch,
            epochs=config.train.epochs,
            warmup_epochs=found.warmup_epochs,
            peak_lr=found.peak_lr,
            min_lr=config.optim.min_lr,
            warmup_lr=config.optim.warmup_lr,
            is_shifted=config.optim.cosine_from == "warmup-end",
        )
        assert lr == pytest.approx(rate, rel=1e-5, abs=2e-13)
    optim, own = config.optim, config.segmenter
    assert optim.schedule == "poly" and optim.layer_decay == layer_decay
    assert (optim.betas, optim.weight_decay, optim.clip_grad) == ((0.9, 0.999), 0.05, None)
    assert (own.head, own.taps, own.norm, own.dropout) == (head, "published", "batch", 0.1)
    assert own.neck == ("wide" if "star" in name else None)
    assert (config.mean, config.decay_positions, config.drop_path_rate) == ("all", True, 0.1)
    assert config.img_size == 512 and config.seed == 0 and config.train.ema_decay is None
    assert config.channel_wise == ChannelWiseOptions(weight=3.0, temperature=1.0)
    assert config.views == SceneViewOptions() and config.evaluation == MapOptions()


LOOKED_UP = {
    *("mae_vit_tiny", "d_mae_vit_tiny", "d_mae_vit_small", "d2_mae_vit_tiny"),
    *("hiera_46_mae", "hiera_46_d_mae", "tiny_vit_distill"),
    *("tinymim_vit_base", "tinymim_vit_small", "tinymim_vit_tiny", "tinymim_chain"),
    "tinymim_finetune_vit_base",
}
"""Published recipes of which every option is known."""
NEVER_PUBLISHED = {
    *("simmim_vit_tiny", "dino_vit_tiny", "tinymim_finetune_vit_small"),
    *("tinymim_finetune_vit_tiny", "tinymim_star_vit_tiny", "tinymim_star_finetune_vit_tiny"),
}
OURS = ("photos_", "compare_")
PRESETS = {file.stem: file.read_text() for file in sorted(PRESETS_DIR.glob("*.toml"))}


@pytest.mark.parametrize("name", [name for name in PRESETS if not name.startswith(OURS)])
def test_a_published_preset_says_what_nobody_looked_up(name):
    text = PRESETS[name]
    if name in NEVER_PUBLISHED:
        assert any(words in text for words in ("not released", "never published", "Ours"))
        return
    _, *said = text.split("# Inherited from the defaults and not looked up: ")
    assert bool(said) != (name in LOOKED_UP)
    config = preset(name)
    for option in said[0].split(".\n")[0].split(", ") if said else ():
        section, _, field = option.partition(".")
        assert f"\n{field} =" not in text  # is left to the default indeed
        assert hasattr(getattr(config, section), field)
