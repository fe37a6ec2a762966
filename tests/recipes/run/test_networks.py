"""Teacher, student and method, fitted to each other."""

from dataclasses import replace

import pytest
import timm
import torch
from timm.layers import DropPath

import limbeck
from limbeck.engine.optim import build_optimizer, set_lr
from limbeck.engine.options import OptimOptions
from limbeck.errors import UserError
from limbeck.methods.distiller import Distiller
from limbeck.methods.masked_pixel import MaskedPixel
from limbeck.methods.options import (
    FeatureOptions,
    LogitOptions,
    MaskedPixelOptions,
    RelationOptions,
    SparseLogitOptions,
)
from limbeck.methods.relation import Relation
from limbeck.models.build import build_student, describe_positions
from limbeck.models.finished import save_student
from limbeck.models.heads import with_classifier
from limbeck.models.options import StudentOptions, TeacherOptions
from limbeck.models.origins.decoder import load_decoder
from limbeck.models.vit import VitEncoder
from limbeck.recipes.run.networks import (
    build_networks,
    check_labels,
    layer_of,
    load_teacher,
    load_vit,
    method_class,
    method_options,
    start_student,
    teacher_identity,
)
from limbeck.recipes.run.options import FinetuneConfig
from limbeck.recipes.train.tuning import build_classifier, load_task_teacher
from limbeck.records import Batch, Tap
from tests.fakes import FakeEncoder
from tests.models.origins import writers
from tests.recipes.runs import STUDENT_SHAPE, distill_config, teacher_config

CPU = torch.device("cpu")

OWN = '''
import limbeck
from limbeck.config import options
from limbeck.methods.options import MethodOptions


@options
class AnyOptions(MethodOptions):
    """Options."""

    beta: float = 2.0


class Any(limbeck.Method):
    """The mean of the tokens."""

    Options = AnyOptions
    student_taps = teacher_taps = (limbeck.Tap("output"),)

    def __init__(self, options, student, teacher):
        super().__init__()
        self.beta = options.beta

    def forward(self, student, teacher, batch):
        total = self.beta * student.tokens.mean()
        return limbeck.Losses(total=total)


class NoMethod:
    pass
'''


@pytest.fixture
def own(tmp_path, monkeypatch):
    """A user's own module ``own_networks_method``."""
    (tmp_path / "own_networks_method.py").write_text(OWN)
    monkeypatch.syspath_prepend(tmp_path)


def test_the_student_s_last_block_takes_the_teacher_s_heads(images, teacher, tmp_path, caplog):
    caplog.set_level("INFO")
    nets = build_networks(distill_config(images, tmp_path, teacher), CPU)
    assert isinstance(nets.method, Relation)
    assert nets.teacher.facts.num_heads == (4, 4, 4)
    assert nets.student.facts.num_heads == (3, 4)
    teacher_hash = limbeck.load(teacher).facts.origin["weight_hash"]
    assert nets.teacher.facts.identity["weights"] == teacher_hash
    assert "The student's block 1 gets 4 heads instead of 3" in caplog.text


def test_a_method_without_a_teacher(images, tmp_path):
    nets = build_networks(teacher_config(images, tmp_path), CPU)
    assert isinstance(nets.method, MaskedPixel)
    assert nets.teacher is None
    assert nets.student.facts.num_heads == (4, 4, 4)


def test_networks_follow_from_the_seed_alone(images, teacher, tmp_path):
    config = teacher_config(images, tmp_path)
    first = build_networks(config, CPU)
    torch.manual_seed(1)
    second = build_networks(config, CPU)
    other = build_networks(replace(config, seed=1), CPU)
    for part in ("student", "method"):
        one, two, three = (getattr(nets, part).state_dict() for nets in (first, second, other))
        assert all(torch.equal(one[name], two[name]) for name in one)
        assert any(not torch.equal(one[name], three[name]) for name in one)


def test_a_block_that_the_teacher_does_not_have(images, teacher, tmp_path):
    config = distill_config(images, tmp_path, teacher, relation=RelationOptions(teacher_block=3))
    with pytest.raises(UserError, match="The teacher has 3 blocks .* there is no block 3"):
        build_networks(config, CPU)


def test_heads_that_do_not_divide_the_student_s_width(images, teacher, tmp_path):
    shape = replace(STUDENT_SHAPE, embed_dim=18)  # 18 channels in 4 heads
    with pytest.raises(UserError, match="18"):
        build_networks(distill_config(images, tmp_path, teacher, student=shape), CPU)


def test_the_drop_path_of_the_last_block_is_none():
    student = start_student(STUDENT_SHAPE, 0.1, seed=0)
    first, last = student.model.blocks
    assert first.drop_path1.drop_prob == first.drop_path2.drop_prob == 0.1
    assert isinstance(last.drop_path1, torch.nn.Identity)
    assert student.training


@pytest.mark.parametrize(
    ("changes", "role"),
    [
        ({"relation": RelationOptions(student_block=0, drop_path_rate=0.2)}, "student"),
        (
            {
                "method": "feature",
                "feature": FeatureOptions(
                    target="attention_output", student_block=0, drop_path_rate=0.2
                ),
            },
            "student",
        ),
        ({"student": replace(STUDENT_SHAPE, depth=1), "method": "feature",
          "feature": FeatureOptions(target="tokens", drop_path_rate=0.2)}, "student"),
        ({"relation": RelationOptions(teacher_block=0)}, "teacher"),
    ],
)  # fmt: skip
def test_drop_path_where_nothing_can_be_dropped(images, teacher, tmp_path, changes, role):
    rate = 0.3 if role == "teacher" else 0.0
    options = TeacherOptions(precision="fp32", source=str(teacher), drop_path_rate=rate)
    values = {"relation": RelationOptions(), "teacher": options} | changes
    config = distill_config(images, tmp_path, teacher, **values)
    with pytest.raises(UserError, match=f"The {role}'s drop_path_rate 0.[23] has no effect"):
        build_networks(config, CPU)


def test_drop_path_that_has_an_effect_or_is_left_alone(images, teacher, tmp_path):
    def build(**changes):
        return build_networks(distill_config(images, tmp_path, teacher, **changes), CPU)

    build(relation=RelationOptions(student_block=0))  # the default rate
    build(relation=RelationOptions(student_block=0, drop_path_rate=0.0))
    tokens = FeatureOptions(target="attention_tokens", student_block=0, drop_path_rate=0.2)
    build(method="feature", relation=RelationOptions(), feature=tokens)


def test_a_teacher_with_drop_path_answers_twice_in_two_ways(teacher):
    student = start_student(STUDENT_SHAPE, 0.0, seed=0)
    pixels = torch.rand(4, 3, 32, 32)
    for rate in (0.0, 0.5):
        options = TeacherOptions(source=str(teacher), drop_path_rate=rate, precision="fp32")
        noisy = load_teacher(options, student.facts, CPU)
        one, two = (noisy(pixels, None, (Tap("tokens"),)).taps[Tap("tokens")] for _ in range(2))
        assert torch.equal(one, two) is (rate == 0)
        assert isinstance(noisy.encoder.model.blocks[-1].drop_path1, torch.nn.Identity)


def test_a_student_that_starts_from_weights(teacher, student):
    start = start_student(StudentOptions(weights=str(student)), 0.0, seed=0)
    loaded = limbeck.load(student)
    assert start.facts.num_heads == (3, 4)
    assert start.training
    for name, value in loaded.state_dict().items():
        assert torch.equal(start.state_dict()[name], value)
    other = start_student(StudentOptions(weights=str(student), img_size=64, num_heads=2), 0.0, 0)
    assert other.facts.grid == (8, 8)
    assert other.facts.num_heads == (2, 2)


def test_fixed_positions_of_a_start_stay_fixed(teacher, tmp_path):
    """No file says how its positions came about: the sin-cos table is known by its values."""
    start = start_student(StudentOptions(weights=str(teacher)), 0.0, 0)
    assert describe_positions(start) == "fixed sin-cos"
    assert not start.model.pos_embed.requires_grad
    resized = start_student(StudentOptions(weights=str(teacher), img_size=64), 0.0, 0)
    assert describe_positions(resized) == "fixed sin-cos, interpolated"
    assert not resized.model.pos_embed.requires_grad
    weights = start.model.state_dict()
    torch.save(weights | {"pos_embed": weights["pos_embed"] + 0.01}, tmp_path / "learned.pth")
    learned = StudentOptions(weights=str(tmp_path / "learned.pth"), num_heads=4)
    assert describe_positions(start_student(learned, 0.0, 0)) == "learned"


def masked(images, tmp_path, start, **options):
    return build_networks(
        replace(
            teacher_config(images, tmp_path),
            student=StudentOptions(weights=str(start)),
            masked_pixel=MaskedPixelOptions(mask_ratio=0.5, **options),
        ),
        CPU,
    ).method.reconstruction.decoder


def test_masked_pixels_go_on_with_the_decoder_of_a_run(images, teacher, tmp_path):
    decoder, kept = masked(images, tmp_path, teacher), load_decoder(teacher).state_dict()
    assert all(torch.equal(decoder.state_dict()[name], value) for name, value in kept.items())
    fresh = masked(images, tmp_path, teacher, fresh_decoder=True)
    assert not torch.equal(fresh.mask_token, decoder.mask_token)
    with pytest.raises(UserError, match=r"\(16, 1, 1\).*set decoder_embed_dim 16, decoder_depth 1"):
        masked(images, tmp_path, teacher, decoder_depth=2)


def test_masked_pixels_go_on_with_the_decoder_of_a_published_file(images, tmp_path):
    weights = writers.mae_full(192, 96)
    file = writers.save_published(tmp_path / "full.pth", weights)
    decoder = masked(images, tmp_path, file)
    assert torch.equal(decoder.decoder_pred.weight, weights["decoder_pred.weight"])
    torch.save(writers.mae_encoder(192), tmp_path / "encoder.pth")
    masked(images, tmp_path, tmp_path / "encoder.pth")
    with pytest.raises(UserError, match="fresh_decoder has no effect"):
        masked(images, tmp_path, tmp_path / "encoder.pth", fresh_decoder=True)


def test_a_decoupled_file_starts_masked_pixels_only_with_a_fresh_decoder(images, tmp_path):
    weights = writers.with_spare_block(writers.mae_full(192, 96))
    file = tmp_path / "d2.pth"
    torch.save(writers.in_mae_lite(weights), file)
    with pytest.raises(UserError, match="set fresh_decoder"):
        masked(images, tmp_path, file)
    assert masked(images, tmp_path, file, fresh_decoder=True).decoder_embed.in_features == 192


def test_a_decoupled_file_is_fine_tuned_with_trained_positions(tmp_path):
    weights = writers.with_spare_block(writers.mae_full(192, 96))
    torch.save(writers.d_mae(weights, writers.mae_encoder(384)), tmp_path / "d2.pth.tar")
    classifier = build_classifier(FinetuneConfig(student=str(tmp_path / "d2.pth.tar")), 7)
    assert classifier.facts.num_heads == (12, 12) and classifier.facts.depth == 2
    assert classifier.model.pos_embed.requires_grad
    assert torch.equal(classifier.model.pos_embed, weights["pos_embed"])
    own = classifier.model.state_dict()
    assert own["fc_norm.weight"].eq(1).all() and "norm.weight" not in own
    shared = own.keys() & weights.keys()
    assert len(shared) == 28 and all(torch.equal(own[name], weights[name]) for name in shared)


def test_an_own_encoder_can_be_no_student(tmp_path, monkeypatch):
    (tmp_path / "own_networks_teacher.py").write_text(
        "from tests.fakes import FakeEncoder\ndef build(**overrides):\n    return FakeEncoder()\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(UserError, match="can be a teacher, not a student"):
        load_vit("own_networks_teacher:build")


def test_a_teacher_gets_the_image_size_that_gives_the_student_s_grid(teacher, caplog):
    caplog.set_level("INFO")
    shape = replace(STUDENT_SHAPE, img_size=64, patch_size=8)
    student = start_student(shape, 0.0, seed=0)
    fitted = load_teacher(TeacherOptions(precision="fp32", source=str(teacher)), student.facts, CPU)
    assert fitted.facts.grid == student.facts.grid == (8, 8)
    assert fitted.facts.img_size == (64, 64)
    assert "The teacher gets images of 64 px (its patches have 8 px)" in caplog.text


def test_a_teacher_s_own_image_size_is_obeyed(teacher):
    student = start_student(STUDENT_SHAPE, 0.0, seed=0)
    options = TeacherOptions(source=str(teacher), img_size=64, precision="fp32")
    fitted = load_teacher(options, student.facts, CPU)
    assert fitted.facts.grid == (8, 8)
    assert fitted.precision == "fp32"


def test_a_classification_teacher_keeps_its_own_image_size(teacher):
    assert load_teacher(
        TeacherOptions(precision="fp32", source=str(teacher)), None, CPU
    ).facts.img_size == (32, 32)


def test_a_fine_tuned_hiera_as_a_teacher_pools_as_its_student_does(tmp_path):
    shape = StudentOptions(name="hiera_46", img_size=64, embed_dim=8, mlp_ratio=1)
    student = build_student(shape, seed=0)
    classifier = with_classifier(student, 3, None, seed=0)
    assert (student.facts.grid, classifier.facts.grid) == ((4, 4), (2, 2))
    save_student(classifier, tmp_path, {})
    options = TeacherOptions(precision="fp32", source=str(tmp_path))
    facts = load_teacher(options, student.facts, CPU).facts
    assert (facts.grid, facts.img_size, facts.num_classes) == ((4, 4), (64, 64), 0)
    larger = build_student(replace(shape, img_size=96), seed=0)
    facts = load_teacher(options, larger.facts, CPU).facts
    assert (facts.grid, facts.img_size) == ((6, 6), (96, 96))
    assert load_teacher(options, None, CPU).facts.num_classes == 3  # of which logits are wanted


def test_a_teacher_for_fine_tuning_must_name_the_same_classes(caplog):
    own = "tests.recipes.own_teachers"

    def load(source, classes):
        config = FinetuneConfig(
            teacher=TeacherOptions(precision="fp32", source=source), logit=LogitOptions(kind="soft")
        )
        return load_task_teacher(config, FakeEncoder().facts, classes, CPU)

    assert load(None, ["a", "b", "c"]) is None
    assert load(f"{own}:named", ["blue", "green", "red"]) is not None
    assert not caplog.records
    with pytest.raises(UserError, match="Class 1 of the teacher is 'green' and that of the images"):
        load(f"{own}:named", ["blue", "red", "green"])
    method, _ = load(f"{own}:nameless", ["a", "b", "c"])
    assert (method.task_weight, method.own_weight) == (0.9, 0.1)
    assert load(f"{own}:named", ["a", "b", "c"]) is not None
    assert [(record.levelname, record.getMessage()) for record in caplog.records] == [
        (
            "WARNING",
            f"The teacher {what}; they are taken to be the images' in their order: a, b, c.",
        )
        for what in ("does not name its classes", "names its classes otherwise")
    ]


TASK_METHOD = """
import limbeck
from limbeck.config import options


@options
class OwnOptions:
    '''Options.'''


class Tokens(limbeck.Method):
    '''Compares tokens, beside any task.'''

    Options = OwnOptions
    student_taps = teacher_taps = (limbeck.Tap("tokens"),)

    def __init__(self, options, student, teacher):
        super().__init__()
        self.grids = student.grid, teacher.grid

    def forward(self, student, teacher, batch):
        raise NotImplementedError
"""


def test_a_task_s_method_that_compares_patches_needs_no_classes_of_its_teacher(
    tmp_path, monkeypatch, caplog
):
    (tmp_path / "own_task_method.py").write_text(TASK_METHOD)
    monkeypatch.syspath_prepend(tmp_path)
    student = build_student(replace(STUDENT_SHAPE, img_size=48), seed=0)
    save_student(build_student(STUDENT_SHAPE, seed=1), tmp_path / "bare", {})
    config = FinetuneConfig(
        teacher=TeacherOptions(precision="fp32", source=str(tmp_path / "bare")),
        method="own_task_method:Tokens",
    )
    method, teacher = load_task_teacher(config, student.facts, ["a", "b", "c"], CPU)
    assert method.grids == ((6, 6), (6, 6)) and teacher.facts.img_size == (48, 48)
    assert not [record for record in caplog.records if record.levelname == "WARNING"]
    other = replace(config, teacher=replace(config.teacher, img_size=32))
    method, teacher = load_task_teacher(other, student.facts, ["a", "b", "c"], CPU)
    assert teacher.facts.grid == (4, 4)  # as asked for; the distiller refuses it
    with pytest.raises(UserError, match="set --teacher.img-size 48"):
        Distiller(student, method, teacher)


def test_a_teacher_is_known_by_what_it_computes(teacher):
    def identity(source, **options):
        options = TeacherOptions(precision="fp32", source=source, **options)
        return teacher_identity(source, load_teacher(options, None, CPU).facts)

    run = identity(str(teacher))
    assert identity(str(teacher), img_size=64) == run  # the same weights, interpolated
    other = identity(str(teacher), num_heads=2)
    assert other != run and other["weights"] == run["weights"]
    own = [identity(f"tests.recipes.own_teachers:{name}") for name in ("nameless", "unknown")]
    assert own[0] != own[1]
    assert None not in (run["weights"], own[0]["weights"], own[1]["weights"])
    assert teacher_identity(None, None) is None


def test_the_layers_of_a_run_s_module():
    student = start_student(STUDENT_SHAPE, 0.0, seed=0)
    layers = {
        "student.model.pos_embed": 0,
        "encoder.model.blocks.1.mlp.fc1.weight": 2,
        "student.model.norm.weight": 3,
        "method.proj.weight": 3,
    }
    assert {name: layer_of(student, name) for name in layers} == layers


def test_no_teacher():
    student = start_student(STUDENT_SHAPE, 0.0, seed=0)
    assert load_teacher(TeacherOptions(), student.facts, CPU) is None


def test_an_own_method(images, teacher, tmp_path, own):
    config = distill_config(
        images,
        tmp_path,
        teacher,
        method="own_networks_method:Any",
        relation=RelationOptions(),
        method_options=("beta=0.5", "drop_path_rate=0.2"),
    )
    nets = build_networks(config, CPU)
    assert type(nets.method).__name__ == "Any"
    assert nets.method.beta == 0.5
    assert nets.student.model.blocks[0].drop_path1.drop_prob == 0.2


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"method_options": ("bet=0.5",)}, "there is no option 'bet'. Did you mean 'beta'?"),
        ({"method_options": ("beta",)}, "--method-options beta: not NAME=VALUE as in TOML"),
        ({"method_options": ("beta='a'",)}, "beta = 'a' is refused"),
        ({"method": "own_networks_method:An"}, "the module has no 'An'. Did you mean 'Any'?"),
        ({"method": "own_networks_method:NoMethod"}, "that is no limbeck.Method"),
        ({"teacher": TeacherOptions()}, "The method own_networks_method:Any needs a teacher"),
    ],
)
def test_mistakes_with_an_own_method(images, teacher, tmp_path, own, changes, message):
    values = {"method": "own_networks_method:Any", "relation": RelationOptions()} | changes
    config = distill_config(images, tmp_path, teacher, **values)
    with pytest.raises(UserError) as caught:
        build_networks(config, CPU)
    assert message in str(caught.value)


def test_method_class_and_options_of_the_table(images, tmp_path):
    config = teacher_config(images, tmp_path)
    assert method_class("relation") is Relation
    assert method_options(config, MaskedPixel) is config.masked_pixel
    assert isinstance(load_vit("timm:vit_tiny_patch16_224", pretrained=False), VitEncoder)


def test_a_convolutional_teacher_by_name_of_its_file_is_for_fine_tuning_alone(images, tmp_path):
    file = tmp_path / "convnet.pth"
    torch.save(timm.create_model("test_resnet", num_classes=3).state_dict(), file)
    options = TeacherOptions(
        precision="fp32", source=str(file), model_name="test_resnet", img_size=64
    )
    found = load_teacher(options, None, CPU)
    assert found.facts.num_classes == 3 and found.facts.img_size == (64, 64)
    config = distill_config(images, tmp_path, file)
    with pytest.raises(UserError, match="The teacher has no blocks: only its logits are known"):
        build_networks(replace(config, teacher=replace(options, img_size=None)), CPU)


def taught(images, classifier, out, **changes):
    """A student that learns the classifier's three classes."""
    values = {"method": "sparse-logit", "relation": RelationOptions()}
    return distill_config(images, out, classifier, **values | changes)


SHAPES = {
    "vit": STUDENT_SHAPE,
    "deit": replace(STUDENT_SHAPE, name="deit_tiny_distilled_patch16_224"),
    "swin": StudentOptions(name="swin_48", img_size=64),
    "hiera": StudentOptions(name="hiera_46", img_size=64),
    "tiny_vit": StudentOptions(name="tiny_vit_5m", img_size=64),
}


@pytest.mark.parametrize("family", SHAPES)
def test_any_student_gets_a_classifier_of_the_teacher_s_classes(
    images, classifier, tmp_path, family
):
    options = SparseLogitOptions(drop_path_rate=0.2)
    nets = build_networks(
        taught(images, classifier, tmp_path, student=SHAPES[family], sparse_logit=options), CPU
    )
    student = nets.student
    assert student.facts.num_classes == 3 and student.training
    assert nets.teacher.facts.img_size == (32, 32)  # its own, whatever the student's
    side = student.facts.img_size[0]
    logits = student(torch.rand(2, 3, side, side), None, (Tap("logits"),)).taps[Tap("logits")]
    logits.sum().backward()
    assert logits.shape == (2, 3)
    rates = [
        next((part.drop_prob for part in block.modules() if isinstance(part, DropPath)), 0.0)
        for block in student.blocks
    ]
    last = len(rates) - 1
    assert rates == pytest.approx([0.2 * block / last for block in range(last + 1)])
    heads = student.model.get_classifier()
    for linear in heads if isinstance(heads, tuple) else (heads,):
        assert linear.weight.grad.abs().sum() > 0
        assert 0.015 < linear.weight.std() < 0.025  # TinyViT's 0.02; 72 draws or more


@pytest.mark.parametrize("family", ["deit", "swin", "hiera", "tiny_vit"])
def test_any_student_learns_what_the_teacher_says(images, classifier, tmp_path, family):
    """A few steps on one batch: the distance to the teacher's probabilities falls."""
    nets = build_networks(taught(images, classifier, tmp_path, student=SHAPES[family]), CPU)
    side = nets.student.facts.img_size[0]
    colors = torch.eye(3)[torch.arange(6) % 3].view(6, 3, 1, 1)
    seen = (colors + torch.rand(6, 3, side, side)) / 2
    batch = Batch(seen, seen, None, tuple("abcdef"), torch.arange(6))
    distiller = Distiller(nets.student, nets.method, nets.teacher)
    optimizer = build_optimizer(distiller, OptimOptions())
    set_lr(optimizer, 3e-5)  # small enough that every step is one down
    losses = []
    for _ in range(4):
        losses.append(distiller(batch).total)
        losses[-1].backward()
        optimizer.step()
        optimizer.zero_grad()
    assert losses[-1] < losses[0]


def test_the_student_s_classifier_reads_what_is_asked_for(images, classifier, tmp_path):
    options = SparseLogitOptions(global_pool="token")
    nets = build_networks(taught(images, classifier, tmp_path, sparse_logit=options), CPU)
    assert nets.student.model.global_pool == "token"


def test_a_teacher_without_a_classifier_teaches_no_classes(images, teacher, tmp_path):
    with pytest.raises(UserError, match="has no classifier; fine-tune it first"):
        build_networks(taught(images, teacher, tmp_path), CPU)


def test_labels_must_be_the_teacher_s_classes(images, classifier, tmp_path):
    options = SparseLogitOptions(label_weight=0.1)
    nets = build_networks(taught(images, classifier, tmp_path, sparse_logit=options), CPU)
    check_labels(nets, ("blue", "green", "red"))
    for classes, named in (((), "have none where"), (("a", "b"), "have 2 classes where")):
        with pytest.raises(UserError, match=f"{named} the teacher knows 3"):
            check_labels(nets, classes)
    with pytest.raises(UserError, match="Class 0 of the teacher is 'blue' and .* 'red'"):
        check_labels(nets, ("red", "green", "blue"))
    alone = build_networks(taught(images, classifier, tmp_path), CPU)
    check_labels(alone, ())


def test_a_teacher_whose_weights_are_not_finite_is_called_the_teacher(tmp_path):
    weights = writers.mae_encoder(192)
    weights["blocks.0.mlp.fc1.weight"][0, 0] = torch.nan
    torch.save(weights, tmp_path / "big.pth")
    options = TeacherOptions(source=str(tmp_path / "big.pth"))
    with pytest.raises(UserError, match=r"teacher can't teach: .*big\.pth .*fc1.weight' holds N"):
        load_teacher(options, None, CPU)
