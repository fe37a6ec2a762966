"""The graph's ends, its three kinds of input, its precisions, and images of other sizes."""

import pytest
import torch

from limbeck.errors import UserError
from limbeck.exports.graph import Graph, as_program, without_fused_attention
from limbeck.records import Tap
from tests.exports.kinds import small
from tests.models.families import small_encoder, small_images

IMAGES = (255 * small_images(3)).round() / 255


def test_a_backbone_gives_tokens_and_their_mean():
    encoder = small_encoder("mae")
    said = Graph(encoder).answer(IMAGES)
    tokens = encoder(IMAGES).tokens.detach()
    assert list(said) == ["tokens", "embedding"]
    assert torch.equal(torch.from_numpy(said["tokens"]), tokens)
    assert torch.equal(torch.from_numpy(said["embedding"]), tokens[:, 1:].mean(1))
    pooled = Graph(encoder, pool="cls").answer(IMAGES)["embedding"]
    assert torch.equal(torch.from_numpy(pooled), tokens[:, 0])


def test_a_classifier_gives_logits_and_two_heads_both():
    assert list(Graph(small_encoder("hiera")).answer(IMAGES)) == ["logits"]
    said = Graph(small_encoder("cls-distilled")).answer(IMAGES)
    assert list(said) == ["logits", "class_logits", "dist_logits"]
    both = (said["class_logits"] + said["dist_logits"]) / 2
    assert said["logits"] == pytest.approx(both)


def test_a_segmenter_gives_its_map_and_the_class_of_each_pixel():
    segmenter = small("augreg+light")
    said = Graph(segmenter).answer(IMAGES)
    logits = segmenter(IMAGES, None, (Tap("logits"),)).taps[Tap("logits")].detach()
    wide = torch.nn.functional.interpolate(logits, (32, 32), mode="bilinear")
    assert torch.equal(torch.from_numpy(said["mask"]).long(), wide.argmax(1))
    assert said["mask"].dtype == "uint8"


@pytest.mark.parametrize("kind", ["augreg", "tiny-vit", "augreg+light"])
def test_all_kinds_of_input_mean_the_same_image(kind):
    encoder = small(kind)
    expected = Graph(encoder).answer(IMAGES)["logits"]
    pixels = Graph(encoder, "uint8")
    assert pixels.feed(IMAGES).shape == (3, 32, 32, 3) and pixels.shape == (-1, 32, 32, 3)
    assert pixels.answer(IMAGES)["logits"] == pytest.approx(expected, abs=1e-5)
    normalised = Graph(encoder, "normalised")
    assert normalised.feed(IMAGES).min() < 0
    assert normalised.answer(IMAGES)["logits"] == pytest.approx(expected, abs=1e-5)
    assert Graph(encoder).answer(IMAGES)["logits"] == pytest.approx(expected)  # a copy was changed


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_a_cast_copy_is_near_and_what_comes_after_the_blocks_stays(precision):
    graph = Graph(small_encoder("augreg"))
    lower = graph.cast(precision)
    assert lower.encoder.model.blocks[0].mlp.fc1.weight.element_size() == 2
    assert lower.encoder.model.head.weight.dtype == torch.float32
    assert graph.encoder.model.blocks[0].mlp.fc1.weight.dtype == torch.float32
    own, other = (each.answer(IMAGES)["logits"] for each in (graph, lower))
    assert own == pytest.approx(other, abs=0.1 * float(abs(own).max())) and (own != other).any()


def test_blocks_come_first_and_in_order():
    graph = Graph(small_encoder("mae"), shows_blocks=True)
    assert list(graph.outputs) == ["block 0", "block 1", "block 2", "tokens", "embedding"]


def test_other_sizes_are_for_plain_vits_alone():
    encoder = small_encoder("mae")
    graph = Graph(encoder, any_size=True)
    assert graph.sizes == [(32, 32), (40, 48)] and graph.shape == (-1, 3, -1, -1)
    assert graph.answer(IMAGES)["tokens"] == pytest.approx(
        Graph(encoder).answer(IMAGES)["tokens"], abs=1e-5
    )
    assert graph.answer(torch.zeros(1, 3, 24, 40))["tokens"].shape == (1, 1 + 3 * 5, 32)
    for kind in ("hiera", "tiny-vit", "swin", "beit-qkv-bias", "augreg+light"):
        with pytest.raises(UserError, match="is built for images of one size"):
            Graph(small(kind), any_size=True)


def test_what_else_a_network_refuses_is_told_in_its_own_words(monkeypatch):
    def refuses(*asked):
        raise UserError("something else")

    encoder = small_encoder("mae")
    monkeypatch.setattr(type(encoder), "forward", refuses)
    with pytest.raises(UserError, match="^something else$"):
        Graph(encoder)


def test_a_class_token_must_be_there():
    with pytest.raises(UserError, match="no CLS token; leave --pool out"):
        Graph(small_encoder("hiera"), pool="cls")


def test_attention_of_products_is_the_same():
    graph = Graph(small_encoder("hiera"))
    plain = without_fused_attention(graph)
    assert graph.encoder.model.blocks[0].attn.fused_attn
    assert not plain.encoder.model.blocks[0].attn.fused_attn
    expected = graph.answer(IMAGES)["logits"]
    assert plain.answer(IMAGES)["logits"] == pytest.approx(expected, abs=1e-4)


def test_the_program_takes_any_number_of_images():
    graph = Graph(small_encoder("mae"), "uint8")
    run = as_program(graph).module()
    for number in (1, 3):
        images = torch.from_numpy(graph.feed(IMAGES[:number]))
        assert torch.equal(run(images)["tokens"], graph(images)["tokens"])
