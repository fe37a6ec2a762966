"""A part of an encoder goes on where the whole one was left, to the bit."""

import pytest
import torch

from limbeck.errors import UserError
from limbeck.models.part import build_part, fill_part
from limbeck.models.timm_encoder import TOKEN_KINDS
from limbeck.records import HEAD_KINDS, Tap
from tests.fakes import FakeEncoder
from tests.models.families import DEPTH, HIERARCHICAL, PLAIN, small_encoder, small_images

LAST = DEPTH - 1


def taps_of(block):
    ends = (Tap("output"),) if block == LAST else ()
    return (*(Tap(kind, block) for kind in (*HEAD_KINDS, *TOKEN_KINDS)), *ends)


@pytest.mark.parametrize("family", PLAIN)
@pytest.mark.parametrize("block", [1, LAST])
def test_it_says_of_its_block_what_the_whole_encoder_says(family, block):
    encoder = small_encoder(family)
    part = build_part(encoder.facts.architecture, encoder.weights_from(block))
    with torch.no_grad():
        live = encoder(small_images(), taps=taps_of(block))
        again = part.continue_from(block, live.taps[Tap("block_input", block)], taps_of(block))
    for tap, value in live.taps.items():
        assert torch.equal(again.taps[tap], value), tap
    assert (again.grid, again.num_prefix_tokens) == (live.grid, live.num_prefix_tokens)


@pytest.mark.parametrize("family", PLAIN)
def test_it_goes_on_from_kept_tokens_or_says_that_it_needs_their_places(family):
    encoder = small_encoder(family)
    ids_keep = torch.tensor([[0, 5, 9], [3, 12, 2]])
    try:
        weights = encoder.weights_from(1, is_dropping=True)
    except UserError as error:
        assert "needs the places of its tokens" in str(error)
        assert not encoder.facts.can_drop or getattr(encoder.model, "rope", None) is not None
        return
    part = build_part(encoder.facts.architecture, weights)
    with torch.no_grad():
        live = encoder(small_images(), ids_keep, taps_of(1))
        again = part.continue_from(1, live.taps[Tap("block_input", 1)], taps_of(1))
    for tap, value in live.taps.items():
        assert torch.equal(again.taps[tap], value), tap


@pytest.mark.parametrize("encoder", [*HIERARCHICAL, "fake"])
def test_an_encoder_that_can_t_says_so_before_anything_is_stored(encoder):
    encoder = FakeEncoder() if encoder == "fake" else small_encoder(encoder)
    with pytest.raises(UserError, match=r"can't go on from the tokens of an inner block, so .*ViT"):
        encoder.weights_from(0)
    with pytest.raises(UserError, match="can't go on"):
        encoder.continue_from(0, torch.zeros(1, 5, 8), (Tap("queries", 0),))


def test_only_the_block_is_in_memory():
    encoder = small_encoder("augreg")
    part = build_part(encoder.facts.architecture, encoder.weights_from(1))
    there = {n for n, value in part.model.named_parameters() if not value.is_meta}
    assert there == {n for n, _ in part.model.named_parameters() if n.startswith("blocks.1.")}


def test_building_it_leaves_the_random_state_alone():
    encoder = small_encoder("augreg")
    state = torch.get_rng_state()
    build_part(encoder.facts.architecture, encoder.weights_from(1))
    assert torch.equal(torch.get_rng_state(), state)


def test_weights_keep_their_type_and_unknown_ones_are_an_error():
    encoder = small_encoder("augreg")
    weights = {name: value.bfloat16() for name, value in encoder.weights_from(1).items()}
    part = build_part(encoder.facts.architecture, weights)
    assert part.model.blocks[1].attn.qkv.weight.dtype == torch.bfloat16
    with pytest.raises(KeyError, match="model.nothing"):
        fill_part(part, {"model.nothing": torch.zeros(1)})
    with pytest.raises(ValueError, match=r"blocks.1.norm1.weight is \(3,\), not \("):
        fill_part(part, {"model.blocks.1.norm1.weight": torch.zeros(3)})
