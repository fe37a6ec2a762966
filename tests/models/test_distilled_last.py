"""G2SD's student: sizes, what the last place in the sequence means, and its place in the contract.

The reference puts the token where the released code does, at the end, and is written out.
"""

import pytest
import torch

from limbeck.errors import UserError
from limbeck.evaluation.cka import LayerGrams
from limbeck.evaluation.embed import embed
from limbeck.evaluation.layers import watch
from limbeck.models.build import build_student
from limbeck.models.distilled_last import DistilledLastVit
from limbeck.models.heads import with_classifier
from limbeck.models.options import StudentOptions
from limbeck.models.vit import build_encoder
from limbeck.ops.pos_embed import interpolate_pos_embed
from limbeck.records import Batch, Tap
from tests.evaluation.images import embed_blocks, measure_attention
from tests.models.families import architecture_of, small_encoder, small_images
from tests.models.origins.writers import run_reference

SMALL = StudentOptions(
    name="vit_tiny", img_size=32, patch_size=8, embed_dim=32, depth=3, num_heads=2
)
KINDS = ("class_logits", "dist_logits", "logits")
LOGITS = tuple(Tap(kind) for kind in KINDS)


def student_of(options=SMALL, num_classes=5, **changes):
    student = build_student(options, seed=0)
    return with_classifier(student, num_classes, None, seed=1, head="distilled-last", **changes)


def run_with_token_last(weights, images, num_heads):
    """Tokens (class, patches, distillation) and logits of both heads and their mean."""
    x = run_reference(weights, images, num_heads)

    def classify(name, token):
        return token @ weights[f"{name}.weight"].T + weights[f"{name}.bias"]

    of_class, of_dist = classify("head", x[:, 0]), classify("head_dist", x[:, -1])
    return x, (of_class, of_dist, (of_class + of_dist) / 2)


def test_the_token_at_the_end_of_the_sequence_is_the_same_function_and_gradient():
    """Attention knows no order, so the place in the sequence is nowhere to be seen."""
    model = student_of().double().eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.2)
    images = small_images().double()
    weights = {n: p.detach().clone().requires_grad_() for n, p in model.model.named_parameters()}
    tokens, expected = run_with_token_last(weights, images, model.facts.num_heads)
    found = model(images, taps=(*LOGITS, Tap("output"))).taps
    for tap, value in zip(LOGITS, expected, strict=True):
        torch.testing.assert_close(found[tap], value)
    # CLS, DIST, patches here; CLS, patches, DIST there.
    moved = torch.cat((tokens[:, :1], tokens[:, -1:], tokens[:, 1:-1]), dim=1)
    torch.testing.assert_close(found[Tap("output")], moved)
    goal = torch.randn(3, 2, 5, dtype=torch.float64)
    sum((found[tap] * goal[k]).sum() for k, tap in enumerate(LOGITS)).backward()
    sum((value * goal[k]).sum() for k, value in enumerate(expected)).backward()
    for name, parameter in model.model.named_parameters():
        torch.testing.assert_close(parameter.grad, weights[name].grad, msg=name)


@pytest.mark.parametrize(("name", "size"), [("vit_tiny", 5_910_608), ("vit_small", 22_436_048)])
def test_it_has_the_published_size_and_tensors(name, size):
    student = build_student(StudentOptions(name=name), seed=0)
    model = with_classifier(student, 1000, None, seed=0, head="distilled-last")
    own, before = model.model.state_dict(), student.model.state_dict()
    assert len(own) == 155 and len(before) == 150
    assert sum(value.numel() for value in own.values()) == size
    assert own["pos_embed"].shape == (1, 197, student.facts.embed_dim)
    added = {"dist_token", "head.weight", "head.bias", "head_dist.weight", "head_dist.bias"}
    assert own.keys() - before.keys() == added and not before.keys() - own.keys()


def test_a_plain_student_keeps_all_its_weights_and_its_positions_are_trained():
    student = build_student(SMALL, seed=0)
    student.set_num_heads(-1, 4)
    model = with_classifier(
        student, 1000, None, seed=1, head="distilled-last", dist_head_init_std=0.02
    )
    facts, own = model.facts, model.model.state_dict()
    assert (facts.num_prefix_tokens, facts.has_cls_token, facts.has_dist_head) == (2, True, True)
    assert facts.num_heads == (2, 2, 4) and facts.origin == student.facts.origin
    for name, value in student.model.state_dict().items():
        assert torch.equal(own[name], value), name
    assert not student.model.pos_embed.requires_grad
    assert all(parameter.requires_grad for parameter in model.parameters())
    stds = [own[name].std().item() for name in ("dist_token", "head.weight", "head_dist.weight")]
    assert stds[1:] == pytest.approx([2e-5, 0.02], rel=0.05) and 0.01 < stds[0] < 0.03
    assert own["head.bias"].eq(0).all() and own["head_dist.bias"].eq(0).all()
    usual = with_classifier(student, 1000, None, seed=1, head="distilled-last").model.state_dict()
    assert usual["head_dist.weight"].std().item() == pytest.approx(2e-5, rel=0.05)


def test_the_token_learns_as_the_heads_do():
    last, first = small_encoder("distilled-last"), small_encoder("deit-distilled")
    assert (last.facts.depth, last.layer_id("dist_token")) == (3, 4)
    assert last.layer_id("model.dist_token") == last.layer_id("head_dist.weight") == 4
    assert last.layer_id("pos_embed") == last.layer_id("cls_token") == 0
    assert first.layer_id("dist_token") == 0


def test_whoever_pools_the_patches_never_meets_the_token():
    """With attention switched off, a token is seen by nobody but who reads it."""
    encoder = small_encoder("distilled-last")
    for block in encoder.model.blocks:
        torch.nn.init.zeros_(block.attn.proj.weight)
    batch = Batch(small_images(), small_images(), None, ("a", "b"), torch.arange(2))

    def pooled():
        found = [embed(encoder, [batch], pool=pool).features for pool in ("mean", "cls")]
        found += [of_block.features for of_block in embed_blocks(encoder, [batch])]
        grams = LayerGrams(encoder)
        watch(encoder, batch.images, [grams])
        return [*found, grams.take()]

    before, logits = pooled(), embed(encoder, [batch]).logits
    encoder.model.dist_token.data += 1.0
    torch.testing.assert_close(pooled(), before, rtol=0, atol=0)
    assert not torch.equal(embed(encoder, [batch]).logits, logits)


def test_attention_is_measured_among_patches_alone():
    encoder = small_encoder("distilled-last")
    batch = Batch(small_images(), small_images(), None, ("a", "b"), torch.arange(2))
    found = measure_attention(encoder, [batch])
    scores = [encoder(small_images(), taps=(Tap("scores", k),)).taps for k in range(3)]
    for of_block, taps in zip(found.entropy, scores, strict=True):
        ((_, value),) = taps.items()
        probs = value[:, :, 2:, 2:].softmax(-1)
        expected = -(probs * probs.log()).sum(-1).mean((0, 2))
        # Sums in another order, of float32.
        torch.testing.assert_close(torch.tensor(of_block), expected, atol=1e-4, rtol=1e-4)


def test_it_is_fine_tuned_again_at_another_size_and_is_no_deit():
    first = student_of()
    second = with_classifier(first, 9, None, seed=0, num_heads=4, img_size=48)
    assert isinstance(second.model, DistilledLastVit) and second.facts.num_heads == (4, 4, 4)
    assert second.model.head_dist.weight.shape == (9, 32)
    table = interpolate_pos_embed(first.model.pos_embed, 1, (4, 4), (6, 6))
    torch.testing.assert_close(second.model.pos_embed, table)
    assert torch.equal(second.model.dist_token, first.model.dist_token)
    deit = with_classifier(build_student(SMALL, seed=0), 3, None, seed=0, head="distilled")
    for encoder, own, head in (
        (first, "distilled-last", "distilled"),
        (first, "distilled-last", "single"),
        (deit, "distilled", "distilled-last"),
    ):
        with pytest.raises(UserError, match=f"heads of kind {own}, which can't become {head}; lea"):
            with_classifier(encoder, 3, None, seed=0, head=head)


def test_both_heads_may_go_on_with_rows_of_their_own():
    first = student_of(head_init_std=0.02)
    second = with_classifier(first, 3, None, seed=5, head_rows=[4, 0, 2])
    for own, old in ((second.model.head, first.model.head),
                     (second.model.head_dist, first.model.head_dist)):  # fmt: skip
        assert torch.equal(own.weight, old.weight[[4, 0, 2]])


def test_it_reads_its_token_alone_and_can_be_without_heads():
    with pytest.raises(UserError, match="distilled-last head has only token pooling, not avg"):
        with_classifier(build_student(SMALL, seed=0), 3, "avg", seed=0, head="distilled-last")
    with pytest.raises(ValueError, match="global_pool avg: the class head reads its token"):
        DistilledLastVit(global_pool="avg")
    architecture = architecture_of("distilled-last")
    architecture["kwargs"] |= {"global_pool": "avg"}
    with pytest.raises(UserError, match="global_pool avg"):
        build_encoder(architecture)
    architecture["kwargs"] |= {"num_classes": 0, "global_pool": "token"}
    bare = build_encoder(architecture)
    assert "logits" not in bare.offered_taps() and bare(small_images()).tokens.shape == (2, 18, 32)
    model = small_encoder("distilled-last").model
    x = torch.rand(2, 18, 32)
    before = model.forward_head(x, pre_logits=True)
    torch.testing.assert_close(before, (x[:, 0] + x[:, 1]) / 2)  # as timm's of DeiT: no patches


def test_a_second_init_is_refused_without_a_second_head():
    with pytest.raises(UserError, match="dist_head_init_std is for a second head, and this has on"):
        with_classifier(build_student(SMALL, seed=0), 3, None, seed=0, dist_head_init_std=0.02)


def test_it_can_be_traced_for_export():
    """What the export to ONNX starts from; the prefix of tokens depends on no value."""

    class Said(torch.nn.Module):
        def __init__(self, encoder):
            super().__init__()
            self.encoder = encoder

        def forward(self, images):
            said = self.encoder(images, None, (Tap("output"), *LOGITS))
            return said.tokens, *said.taps.values()

    module, images = Said(small_encoder("distilled-last")), small_images()
    program = torch.export.export(module, (images,), strict=False)
    torch.testing.assert_close(program.module()(images), module(images))
