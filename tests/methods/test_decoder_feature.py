"""G2SD's generic distillation: golden numbers, a slow reference, and what is refused."""

from dataclasses import replace

import pytest
import torch
from torch import nn

from limbeck.errors import UserError
from limbeck.methods.decoder_feature import DecoderFeature
from limbeck.methods.distiller import Distiller
from limbeck.methods.options import DecoderFeatureOptions
from limbeck.methods.teacher import Teacher
from limbeck.models.build import build_student
from limbeck.models.finished import Keepsake
from limbeck.models.options import StudentOptions
from limbeck.ops.losses import whiten
from limbeck.ops.masking import counter_uniform
from limbeck.records import Batch, Features, Tap
from tests.fakes import FakeEncoder
from tests.models.families import small_encoder

TARGET, OUTPUT, LAST_TOKENS = Tap("decoder_tokens", 3), Tap("output"), Tap("tokens", -1)
SHAPES = {"vit_tiny": 192, "vit_small": 384, "vit_base": 768}


def facts_of(name):
    """Of a ViT at 224 pixels, without its weights."""
    with torch.device("meta"):
        return build_student(StudentOptions(name=name), seed=0).facts


@pytest.fixture(scope="module")
def teacher_facts():
    """MAE's ViT-B: a decoder of eight blocks, 512 wide."""
    return replace(facts_of("vit_base"), decoder_depth=8, decoder_dim=512)


def build(student=None, teacher=None, **options):
    student = student or FakeEncoder().facts
    teacher = teacher or FakeEncoder(embed_dim=16, decoder_depth=4).facts
    return DecoderFeature(DecoderFeatureOptions(**options), student, teacher)


def batch_of(count, side=8):
    images = torch.rand(count, 3, side, side)
    return Batch(images, images, None, tuple(map(str, range(count))), torch.arange(count))


def compared(method, own, theirs, batch):
    """The losses of decoder tokens that are given, through no projection."""
    method.decoder = nn.Module()
    method.decoder.decode = lambda tokens, ids_keep: own
    method.decoderfeature_pred = nn.Identity()
    student = Features(None, 1, (14, 14), {OUTPUT: torch.zeros(len(own), 50, 192)})
    return method(student, Features(None, 1, (14, 14), {TARGET: theirs}), method.prepare(batch))


# --- Golden numbers -------------------------------------------------------------------------------


def hidden(fill):
    tokens = torch.zeros(2, 197, 512)
    tokens[...] = fill
    return tokens


RAMP = torch.arange(512.0)
ONE_HOT = (torch.arange(512) == 0).float()
ALTERNATING = 1 - 2.0 * (torch.arange(512) % 2)


@pytest.mark.parametrize(
    ("target", "prediction", "loss"),
    [
        (RAMP, 0.0, 0.25),
        (ONE_HOT, 0.0, 0.0426746),
        (ALTERNATING, 0.0, 0.2499998),
        (ALTERNATING, 3.0, 2.0),
    ],
)
def test_golden_losses(teacher_facts, target, prediction, loss):
    method = build(facts_of("vit_tiny"), teacher_facts)
    losses = compared(method, hidden(prediction), hidden(target), batch_of(2, 224))
    assert losses.total.item() == pytest.approx(loss, rel=1e-5)
    at_zero = {512.0: 0.25, 1.0: 0.0426746, 0.0: 0.2499998}[
        512.0 if target is RAMP else target.sum().item()
    ]
    assert losses.at_zero.item() == pytest.approx(at_zero, rel=1e-5)


def test_golden_whitened_values():
    values = whiten(hidden(ONE_HOT))[0, 0]
    assert values[:2].tolist() == pytest.approx([22.59951, -0.0442261], rel=1e-5)


@pytest.mark.parametrize(
    ("positions", "loss"), [("all", 4 / 197), ("patches", 0.0), ("masked", 0.0), ("visible", 0.0)]
)
def test_only_all_positions_have_the_cls_token(teacher_facts, positions, loss):
    method = build(facts_of("vit_tiny"), teacher_facts, positions=positions)
    prediction = hidden(ALTERNATING)
    prediction[:, 0] = 5
    losses = compared(method, prediction, hidden(ALTERNATING), batch_of(2, 224))
    assert losses.total.item() == pytest.approx(loss, rel=1e-5, abs=1e-10)


def test_nothing_predicted_of_a_gaussian_target(teacher_facts):
    """E[smooth L1 of a normal number] = 0.2471, and never more than a quarter."""
    method = build(facts_of("vit_tiny"), teacher_facts)
    losses = compared(method, hidden(0.0), torch.randn(2, 197, 512), batch_of(2, 224))
    # 201,728 numbers whose loss has a standard deviation of about 0.32: 0.0007 is one error.
    assert losses.at_zero.item() == pytest.approx(0.2471, abs=0.003)
    assert losses.at_zero.item() == pytest.approx(losses.total.item(), rel=1e-6)
    assert not losses.at_zero.requires_grad


def test_the_sizes_of_the_paper(teacher_facts):
    """What is built is what is trained: without norm, pixel head and encoder projection."""
    for name, whole in (("vit_tiny", 7_534_400), ("vit_small", 26_452_352)):
        facts, width = facts_of(name), {"vit_tiny": 128, "vit_small": 256}[name]
        with torch.device("meta"):
            method = build(facts, teacher_facts)
            encoder = build_student(StudentOptions(name=name), seed=0)
        unused = 2 * width + (width + 1) * 768 + (facts.embed_dim + 1) * 768 + 769 * 768
        own = sum(p.numel() for m in (method, encoder) for p in m.parameters())
        assert own + unused == whole
        assert method.decoder.decoder_blocks[0].attn.num_heads == width // 32
        assert len(method.decoder.decoder_blocks) == 4


@pytest.mark.parametrize(("embed_dim", "width"), [(192, 128), (384, 256), (768, 512), (24, 32)])
def test_the_width_follows_the_student_s(embed_dim, width):
    facts = FakeEncoder(embed_dim=embed_dim).facts
    assert build(facts).decoder.mask_token.shape[-1] == width


@pytest.mark.parametrize(("width", "num_heads"), [(64, 4), (192, 8), (96, 3), (16, 1)])
def test_the_heads_follow_the_width(width, num_heads):
    decoder = build(decoder_embed_dim=width).decoder
    assert decoder.decoder_blocks[0].attn.num_heads == num_heads


def test_49_patches_are_seen_by_both_sides(teacher_facts):
    method = build(facts_of("vit_tiny"), teacher_facts)
    prepared = method.prepare(batch_of(3, 224))
    assert prepared.ids_keep.shape == (3, 49)
    assert torch.equal(prepared.ids_keep, prepared.teacher_ids_keep)
    assert method.shown_to_teacher() == {"masking": "drop", "mask_ratio": 0.75, "num_units": 196}
    tokens = torch.randn(3, 50, 192)
    assert method.decoder.decode(tokens, prepared.ids_keep).shape == (3, 197, 128)


# --- A slow reference from the formula ------------------------------------------------------------


def layer_norm(x, weight=None, bias=None):
    mean = x.mean(-1, keepdim=True)
    variance = ((x - mean) ** 2).mean(-1, keepdim=True)  # biased
    x = (x - mean) / (variance + 1e-6).sqrt()
    return x if weight is None else x * weight + bias


def run_block(x, w, num_heads):
    """One image's tokens (N, D) through a block, head by head."""
    y = layer_norm(x, w["norm1.weight"], w["norm1.bias"]) @ w["attn.qkv.weight"].T
    q, k, v = (y + w["attn.qkv.bias"]).chunk(3, dim=-1)
    side = x.shape[-1] // num_heads
    heads = []
    for head in range(num_heads):
        part = slice(head * side, (head + 1) * side)
        scores = q[:, part] @ k[:, part].T / side**0.5
        heads.append(scores.softmax(-1) @ v[:, part])
    x = x + torch.cat(heads, -1) @ w["attn.proj.weight"].T + w["attn.proj.bias"]
    y = layer_norm(x, w["norm2.weight"], w["norm2.bias"])
    return x + run_mlp(y, {n.removeprefix("mlp."): v for n, v in w.items() if "mlp." in n})


def run_mlp(x, w):
    y = x @ w["fc1.weight"].T + w["fc1.bias"]
    y = y * (1 + torch.erf(y / 2**0.5)) / 2
    return y @ w["fc2.weight"].T + w["fc2.bias"]


def below(weights, start):
    return {n.removeprefix(start): v for n, v in weights.items() if n.startswith(start)}


def distances(prediction, tokens):
    """Smooth L1 of one token's channels, beta 2, one by one."""
    error = (prediction - layer_norm(tokens)).abs()
    return [e**2 / 4 if e < 2 else e - 1 for e in error]


def reference(weights, tokens, target, last_tokens, seed, *, positions, encoder_weight, num_heads):
    """The losses of one image from the formula: shuffle, restore, all tokens; (sum, count)."""
    num_patches, num_kept = 16, tokens.shape[0] - 1
    noise = counter_uniform(torch.tensor([seed]), num_patches)[0]
    shuffle = sorted(range(num_patches), key=lambda patch: noise[patch])
    restore = [shuffle.index(patch) for patch in range(num_patches)]
    y = tokens @ weights["decoder.decoder_embed.weight"].T + weights["decoder.decoder_embed.bias"]
    filled = [*y[1:], *[weights["decoder.mask_token"][0, 0]] * (num_patches - num_kept)]
    x = torch.stack([y[0], *[filled[restore[patch]] for patch in range(num_patches)]])
    x = x + weights["decoder.decoder_pos_embed"][0]
    for block in range(2):
        x = run_block(x, below(weights, f"decoder.decoder_blocks.{block}."), num_heads)
    prediction = run_mlp(x, below(weights, "decoderfeature_pred."))
    is_seen = [restore[patch] < num_kept for patch in range(num_patches)]
    wanted = {
        "all": range(17),
        "patches": range(1, 17),
        "masked": [1 + patch for patch in range(16) if not is_seen[patch]],
        "visible": [1 + patch for patch in range(16) if is_seen[patch]],
    }[positions]
    decoder = [d for place in wanted for d in distances(prediction[place], target[place])]
    if not encoder_weight:
        return decoder, []
    projected = run_mlp(tokens, below(weights, "encoderfeature_pred."))
    pairs = zip(projected, last_tokens, strict=True)
    return decoder, [encoder_weight * d for own, other in pairs for d in distances(own, other)]


@pytest.mark.parametrize("encoder_weight", [0.0, 0.5])
@pytest.mark.parametrize("positions", ["all", "masked", "visible", "patches"])
def test_equals_the_formula_with_its_gradients(positions, encoder_weight):
    student = replace(FakeEncoder().facts, img_size=(16, 16))
    teacher = replace(FakeEncoder(embed_dim=10, decoder_depth=4).facts, img_size=(16, 16))
    options = {"positions": positions, "encoder_weight": encoder_weight}
    shape = {"decoder_embed_dim": 8, "decoder_depth": 2, "decoder_num_heads": 2}
    method = build(student, teacher, **options, **shape).double()
    for parameter in method.parameters():  # biases too
        nn.init.normal_(parameter, std=0.5)
    batch = method.prepare(replace(batch_of(2, 16), view_seeds=torch.tensor([3, 40])))
    tokens = torch.randn(2, 5, 8, dtype=torch.float64, requires_grad=True)
    target = 2 * torch.randn(2, 17, 5, dtype=torch.float64)
    last_tokens = torch.randn(2, 5, 10, dtype=torch.float64)
    taps = {TARGET: target} | ({LAST_TOKENS: last_tokens} if encoder_weight else {})
    losses = method(
        Features(None, 1, (4, 4), {OUTPUT: tokens}), Features(None, 1, (4, 4), taps), batch
    )
    wanted = [tokens, *(p for p in method.parameters() if p.requires_grad)]
    gradients = torch.autograd.grad(losses.total, wanted)

    weights = dict(method.named_parameters())
    pairs = [
        reference(weights, tokens[n], target[n], last_tokens[n], seed, **options, num_heads=2)
        for n, seed in enumerate((3, 40))
    ]
    expected = torch.stack([d for decoder, _ in pairs for d in decoder]).mean()
    assert losses.parts["decoder"].item() == pytest.approx(expected.item(), rel=1e-12)
    if encoder_weight:
        encoder = torch.stack([d for _, encoder in pairs for d in encoder]).mean()
        assert losses.parts["encoder"].item() == pytest.approx(encoder.item(), rel=1e-12)
        expected = expected + encoder
    assert losses.total.item() == pytest.approx(expected.item(), rel=1e-12)
    slow = torch.autograd.grad(expected, wanted)
    torch.testing.assert_close(gradients, slow, rtol=1e-9, atol=1e-12)


# --- Other losses ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("loss", "at_zero", "same"), [("mse", 1.0, 0.0), ("cosine", 1.0, 0.0), ("smooth-l1", 0.25, 0.0)]
)
def test_losses_at_zero_and_at_the_target(teacher_facts, loss, at_zero, same):
    method = build(facts_of("vit_tiny"), teacher_facts, loss=loss)
    target = hidden(ALTERNATING)
    losses = compared(method, whiten(target), target, batch_of(2, 224))
    assert losses.total.item() == pytest.approx(same, abs=1e-6)
    assert losses.at_zero.item() == pytest.approx(at_zero, rel=1e-4)


# --- Networks -------------------------------------------------------------------------------------


def test_register_tokens_never_reach_a_decoder():
    """Of a student and a teacher with registers the CLS token and the patches are compared."""
    student = FakeEncoder(num_prefix_tokens=3).facts
    teacher = FakeEncoder(embed_dim=16, num_prefix_tokens=5, decoder_depth=4).facts
    method = build(student, teacher, encoder_weight=1.0, mask_ratio=0.5)
    one = method.prepare(batch_of(2))
    tokens, last = torch.randn(2, 5, 8), torch.randn(2, 7, 16)
    target = torch.randn(2, 5, 8)
    losses = []
    for _ in range(2):
        tokens, last = tokens.clone(), last.clone()
        theirs = {TARGET: target, LAST_TOKENS: last}
        own = Features(None, 3, (2, 2), {OUTPUT: tokens})
        losses.append(method(own, Features(None, 5, (2, 2), theirs), one).total)
        tokens[:, 1:3], last[:, 1:5] = 7.0, -7.0
    assert losses[0] == losses[1]


def test_a_cls_token_on_one_side_alone():
    student = FakeEncoder(num_prefix_tokens=0).facts
    teacher = FakeEncoder(embed_dim=16, decoder_depth=4).facts
    with pytest.raises(UserError, match="student has none.*--decoder-feature.positions patches"):
        build(student, teacher)
    with pytest.raises(UserError, match="The student has a CLS token and the teacher has none"):
        build(None, FakeEncoder(num_prefix_tokens=0, decoder_depth=4).facts)
    method = build(student, teacher, positions="patches", encoder_weight=1.0, mask_ratio=0.5)
    theirs = {TARGET: torch.randn(2, 5, 8), LAST_TOKENS: torch.randn(2, 3, 16)}
    own = Features(None, 0, (2, 2), {OUTPUT: torch.randn(2, 2, 8)})
    one = method.prepare(batch_of(2))
    losses = method(own, Features(None, 1, (2, 2), theirs), one)
    assert losses.parts.keys() == {"decoder", "encoder"}


def test_another_grid_of_patches_has_its_remedy():
    student, teacher = FakeEncoder(), FakeEncoder(decoder_depth=4)
    teacher._facts["img_size"] = (16, 16)
    value = Teacher(teacher, torch.device("cpu"), "fp32")
    with pytest.raises(UserError, match=r"grid of 4 x 4 .* --teacher.img-size 8"):
        Distiller(student, build(student.facts, teacher.facts), value)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"teacher": FakeEncoder().facts}, "has no decoder.*mae_pretrain_vit_base_full.pth"),
        ({"target_block": 4}, r"has 4 blocks \(0 to 3.*change decoder_feature.target_block"),
        ({"target_block": -5}, "there is no block -5"),
        ({"mask_ratio": 0.9}, "keeps 0 of 4 patches"),
        ({"decoder_embed_dim": 64, "decoder_num_heads": 3}, "set decoder_embed_dim"),
        ({"loss": "mse", "beta": 1.0}, "beta has no effect with the loss 'mse'"),
        ({"student": replace(FakeEncoder().facts, can_drop=False)}, "can't leave patches out"),
    ],
)
def test_what_does_not_fit_is_refused(values, message):
    with pytest.raises(UserError, match=message):
        build(**values)


def test_a_hierarchical_student_is_refused():
    teacher = FakeEncoder(decoder_depth=4).facts
    with pytest.raises(UserError, match="is hierarchical.*choose a plain vision Transformer"):
        build(small_encoder("hiera").facts, teacher)


def test_a_later_teacher_is_read_where_it_has_learnt():
    options = DecoderFeatureOptions(target_block=3, decoder_depth=2)
    assert options.for_next_stage() == replace(options, target_block=-1)


# --- What is kept ---------------------------------------------------------------------------------


def test_the_decoder_and_its_projections_are_kept_and_gone_on_with():
    one, other = (build(encoder_weight=0.5) for _ in range(2))
    (name, kept), = one.keepsakes().items()  # fmt: skip
    assert name == "feature_decoder" and kept.facts == {"num_heads": 1, "grid": [2, 2]}
    tops = {weight.split(".")[0] for weight in kept.weights}
    assert tops == {
        "decoder_embed", "mask_token", "decoder_pos_embed", "decoder_blocks",
        "decoderfeature_pred", "encoderfeature_pred",
    }  # fmt: skip
    assert not torch.equal(one.decoder.mask_token, other.decoder.mask_token)
    other.recall({name: kept})
    for weight, value in one.state_dict().items():
        assert torch.equal(other.state_dict()[weight], value), weight


def test_a_fresh_decoder_where_there_is_a_choice():
    kept = build().keepsakes()
    fresh = build(fresh_decoder=True)
    start = fresh.decoder.mask_token.clone()
    fresh.recall(kept)
    assert torch.equal(fresh.decoder.mask_token, start)
    with pytest.raises(UserError, match="fresh_decoder has no effect"):
        fresh.recall({"decoder": Keepsake({})})
    with pytest.raises(UserError, match="set decoder_embed_dim 32, decoder_depth 4"):
        build(decoder_depth=2).recall(kept)
