"""A decoder's tokens as taps: where they are taken, what does not run, what is told of both."""

import pytest
import torch

from limbeck.errors import UserError
from limbeck.methods.teacher import Teacher
from limbeck.models.build import build_student
from limbeck.models.encoder import check_taps
from limbeck.models.mae import MaeDecoder, build_projection
from limbeck.models.masked_autoencoder import MaskedAutoencoder
from limbeck.models.options import StudentOptions
from limbeck.ops.masking import random_ids_keep
from limbeck.records import Tap
from tests.contracts.test_encoders import all_taps, expected_shape
from tests.models.families import small_encoder, small_images

CPU = torch.device("cpu")
IDS_KEEP = torch.tensor([[4, 1, 15], [0, 5, 7]])
LAST = Tap("decoder_tokens")


def autoencoder(family="mae", depth=3, width=16, grid=(4, 4), has_cls_token=True, **changes):
    """A small encoder of 32-pixel images and a decoder with weights of a scale that matters."""
    torch.manual_seed(1)
    encoder = small_encoder(family)
    embed_dim = changes.pop("embed_dim", encoder.facts.output_dim)
    decoder = MaeDecoder(embed_dim, grid, 8, width, depth, 2, has_cls_token, **changes)
    for name, value in decoder.named_parameters():
        if "pos_embed" not in name:
            value.data += 0.1 * torch.randn_like(value)
    return MaskedAutoencoder(encoder, decoder).eval()


def test_every_offered_tap_exists_and_fits_the_facts():
    encoder = autoencoder()
    facts = encoder.facts
    assert (facts.decoder_depth, facts.decoder_dim) == (3, 16)
    taps = (*all_taps(encoder), *(Tap("decoder_tokens", block) for block in range(3)))
    features = encoder(small_images(), taps=taps)
    assert set(features.taps) == set(taps)
    for tap, value in features.taps.items():
        assert tuple(value.shape) == expected_shape(tap, facts), tap
    assert features.tokens is features.taps[Tap("output")]


def test_without_a_decoder_tap_it_is_the_encoder():
    encoder, images = autoencoder(), small_images()
    taps = (Tap("output"), Tap("queries", 0))
    for tap, value in encoder.encoder(images, IDS_KEEP, taps).taps.items():
        assert torch.equal(encoder(images, IDS_KEEP, taps).taps[tap], value)
    assert torch.equal(encoder(images).tokens, encoder.encoder(images).tokens)


@pytest.mark.parametrize("block", [0, 1, 2, -1])
def test_a_tap_is_what_its_block_gives_and_no_later_part_runs(block):
    encoder, seen, ran = autoencoder(), {}, []
    parts = dict(encoder.decoder.named_children())
    for index, module in enumerate(parts["decoder_blocks"]):
        module.register_forward_hook(lambda _, __, out, index=index: seen.update({index: out}))
    for name in ("decoder_norm", "decoder_pred"):
        parts[name].register_forward_hook(lambda *_, name=name: ran.append(name))
    tap = Tap("decoder_tokens", block)
    features = encoder(small_images(), IDS_KEEP, (tap,))
    assert features.tokens is None and [*features.taps] == [tap]
    assert [*seen] == list(range(block % 3 + 1)) and ran == []
    assert torch.equal(features.taps[tap], seen[block % 3])


def test_the_teacher_of_the_paper_gives_197_tokens_after_its_fourth_block():
    # arXiv 2302.14771: 49 of 196 patches seen, the fourth of eight blocks of width 512.
    shape = StudentOptions(name="vit_tiny", embed_dim=32, depth=1, num_heads=2)
    encoder = build_student(shape, seed=0)
    decoder = MaeDecoder(32, (14, 14), 16, 512, 5, 16, True)
    seen = []
    decoder.decoder_blocks[3].register_forward_hook(lambda _, __, out: seen.append(out))
    ids_keep = random_ids_keep(torch.arange(1), 196, 0.75)
    assert ids_keep.shape == (1, 49)
    tap = Tap("decoder_tokens", 3)
    found = MaskedAutoencoder(encoder, decoder)(torch.rand(1, 3, 224, 224), ids_keep, (tap,))
    assert found.taps[tap].shape == (1, 197, 512)
    assert torch.equal(found.taps[tap], seen[0])


def test_with_a_mask_token_the_decoder_sees_every_place():
    encoder, images = autoencoder(), small_images()
    token = torch.randn(1, 1, encoder.facts.embed_dim)
    said = encoder(images, IDS_KEEP, (LAST,), token).taps[LAST]
    tokens = encoder.encoder(images, IDS_KEEP, mask_token=token).tokens
    assert torch.equal(said, encoder.decoder.decode(tokens))


def test_register_tokens_stay_in_the_encoder():
    encoder = autoencoder("dinov2-registers-swiglu")
    assert encoder.facts.num_prefix_tokens > 1
    assert encoder(small_images(), IDS_KEEP, (LAST,)).taps[LAST].shape == (2, 17, 16)


def test_a_block_that_is_not_there_is_refused():
    with pytest.raises(UserError, match=r"decoder has 3 blocks \(0 to 2.* no block 3 in it"):
        autoencoder()(small_images(), taps=(Tap("decoder_tokens", 3),))
    with pytest.raises(UserError, match="needs 'decoder_tokens' of the teacher, which offers only"):
        check_taps(small_encoder("mae"), (LAST,), "teacher")


def test_what_a_decoder_can_not_read_is_refused():
    with pytest.raises(UserError, match="width 24 on a grid of 4 x 4, and the .* gives width 32"):
        autoencoder(embed_dim=24)
    with pytest.raises(UserError, match="a grid of 5 x 4, and .* on 4 x 4"):
        autoencoder(grid=(5, 4))
    with pytest.raises(UserError, match="vit_base_patch16_224 has a CLS token and the decoder has"):
        autoencoder(has_cls_token=False)


# --- What is told of it --------------------------------------------------------------------------


def test_its_identity_is_that_of_both_networks():
    def identity(encoder, decoder):
        facts = encoder.facts
        encoder.facts = type(facts)(**vars(facts) | {"origin": {"weight_hash": "a"}})
        return MaskedAutoencoder(encoder, decoder).facts.identity

    parts = autoencoder()
    first = identity(parts.encoder, parts.decoder)
    assert first == identity(parts.encoder, parts.decoder)
    assert first["architecture"]["decoder"] == {"embed_dim": 16, "depth": 3, "num_heads": 2}
    assert len(first["weights"]) == 64
    parts.decoder.mask_token.data += 1
    changed = identity(parts.encoder, parts.decoder)
    assert changed["weights"] != first["weights"]
    assert changed | {"weights": None} == first | {"weights": None}
    assert identity(parts.encoder, autoencoder(depth=2).decoder) != first
    # Where the encoder's weights are not known, nor are those of both: the source tells them.
    assert parts.facts.identity["weights"] is None


def test_heads_can_be_split_again():
    encoder = autoencoder()
    encoder.set_num_heads(-1, 4)
    assert encoder.facts.num_heads == encoder.encoder.facts.num_heads == (2, 2, 4)
    assert encoder.facts.decoder_depth == 3


def test_layers_are_the_encoder_s_and_the_decoder_counts_as_the_last_block():
    encoder = autoencoder()
    layers = {name: encoder.layer_id(name) for name, _ in encoder.named_parameters()}
    assert layers["encoder.model.cls_token"] == 0
    assert layers["encoder.model.blocks.2.attn.qkv.weight"] == 3
    assert layers["encoder.model.norm.weight"] == 4
    assert {i for name, i in layers.items() if name.startswith("decoder.")} == {3}


@pytest.mark.parametrize("precision", ["bf16", "fp32"])
def test_a_teacher_s_precision_and_attention_reach_the_decoder(precision):
    live = autoencoder()
    expected = live(small_images(), IDS_KEEP, (LAST,)).taps[LAST].detach()
    teacher = Teacher(autoencoder(), CPU, precision)
    block, dtype = teacher.encoder.decoder.decoder_blocks[0], {"bf16": torch.bfloat16}
    matrices = [block.attn.qkv, block.mlp.fc1, teacher.encoder.decoder.decoder_embed]
    matrices.append(teacher.encoder.encoder.model.blocks[0].mlp.fc2)
    assert {each.weight.dtype for each in matrices} == {dtype.get(precision, torch.float32)}
    assert block.norm1.weight.dtype == teacher.encoder.decoder.mask_token.dtype == torch.float32
    assert block.attn.fused_attn is (precision == "fp32")
    said = teacher(small_images(), IDS_KEEP, (LAST,)).taps[LAST]
    assert said.dtype == torch.float32 and not said.requires_grad  # the residual stream
    # Eight bits of mantissa in every product, errors of which add up over three blocks.
    tolerance = 0.05 if precision == "bf16" else 1e-6
    assert (said - expected).norm() < tolerance * expected.norm()


# --- Published sizes -----------------------------------------------------------------------------

WIDE = (14, 14), 16


def sizes(*modules):
    """Values and tensors, the fixed positions among them, as the files have them."""
    states = [module.state_dict().values() for module in modules]
    return sum(v.numel() for each in states for v in each), sum(map(len, states))


# Of 12 tensors a block; 6 are the encoder's besides, 8 the decoder's, 8 those of two MLPs.
@pytest.mark.parametrize(
    ("name", "decoder", "values", "tensors"),
    [
        ("vit_tiny", (128, 4, 4), 7_534_400, 214),
        ("vit_small", (256, 4, 8), 26_452_352, 214),
        ("vit_small", (128, 4, 4), 23_847_680, 214),
    ],
)
def test_the_students_of_the_generic_stage_have_the_published_sizes(name, decoder, values, tensors):
    with torch.device("meta"):
        encoder = build_student(StudentOptions(name=name), seed=0)
        width = encoder.facts.embed_dim
        whole = MaeDecoder(width, *WIDE, *decoder, True)
        to_decoder, to_encoder = build_projection(decoder[0], 512), build_projection(width, 768)
    assert sizes(encoder.model, whole, to_decoder, to_encoder) == (values, tensors)
    assert sizes(encoder.model) == ({192: 5_524_416, 384: 21_665_664}[width], 150)


@pytest.mark.parametrize(
    ("name", "values", "tensors"),
    [
        ("vit_base", 111_907_840, 254),
        # Its decoder is that of ViT-B but for the width of what enters.
        (
            "vit_large_patch16_224",
            303_301_632 + (111_907_840 - 85_798_656) + (1024 - 768) * 512,
            24 * 12 + 6 + 104,
        ),
    ],
)
def test_the_teachers_have_the_published_sizes(name, values, tensors):
    with torch.device("meta"):
        encoder = build_student(StudentOptions(name=name), seed=0)
        decoder = MaeDecoder(encoder.facts.embed_dim, *WIDE, 512, 8, 16, True)
    found = sizes(encoder.model, decoder)
    assert found == (values, tensors)
    assert sizes(encoder.model)[0] == {768: 85_798_656, 1024: 303_301_632}[encoder.facts.embed_dim]
    assert sizes(decoder)[1] == 104
    with torch.device("meta"):  # of such a student: 406 tensors with ViT-L
        both = build_projection(512, 512), build_projection(encoder.facts.embed_dim, 768)
    assert sizes(encoder.model, decoder, *both)[1] == {254: 262, 398: 406}[tensors]


@pytest.mark.parametrize(
    ("name", "decoder", "values"),
    [("vit_tiny", (128, 4, 4), 7_471_360), ("vit_small", (256, 4, 8), 26_326_272)],
)
def test_what_is_not_trained_of_a_student_is_its_positions(name, decoder, values):
    with torch.device("meta"):
        encoder = build_student(StudentOptions(name=name), seed=0)
        width = encoder.facts.embed_dim
        parts = (
            encoder, MaeDecoder(width, *WIDE, *decoder, True),
            build_projection(decoder[0], 512), build_projection(width, 768),
        )  # fmt: skip
    trained = [p.numel() for part in parts for p in part.parameters() if p.requires_grad]
    assert sum(trained) == values
