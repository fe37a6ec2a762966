"""What all families share: the right encoder for a model, and no more work than taps need.

What each family promises is in tests/contracts/test_encoders.py.
"""

import pytest
import torch

from limbeck.models.build import set_drop_path
from limbeck.models.hiera import HieraEncoder
from limbeck.models.swin import SwinEncoder
from limbeck.models.vit import VitEncoder
from limbeck.ops.schedules import layer_scale
from limbeck.records import Tap
from tests.models.families import HIERARCHICAL, small_encoder, small_images


def test_each_family_has_its_encoder():
    kinds = {"hiera": HieraEncoder, "swin": SwinEncoder, "augreg": VitEncoder}
    for family, kind in kinds.items():
        assert type(small_encoder(family)) is kind


@pytest.mark.parametrize("family", HIERARCHICAL)
def test_nothing_after_the_last_block_needed_is_run(family):
    encoder = small_encoder(family)
    run = []
    for index, block in enumerate(encoder.blocks):
        block.register_forward_pre_hook(lambda *_, index=index: run.append(index))
    last = encoder.facts.depth - 1
    encoder(small_images(), taps=(Tap("block_input", last),))
    assert run == [*range(last)]
    index = next(k for k in range(1, last + 1) if encoder.facts.num_heads[k])
    encoder(small_images(), taps=(Tap("tokens", index - 1), Tap("attention_input", index)))
    assert run == [*range(last), *range(index)]


@pytest.mark.parametrize("family", HIERARCHICAL)
def test_layer_decay_lets_the_head_learn_at_the_full_rate(family):
    """The released code of arXiv 2404.12210 gives a Swin's head and norm less than its blocks."""
    encoder = small_encoder(family)
    depth = encoder.facts.depth
    scales = {
        n: layer_scale(encoder.layer_id(n), depth, 0.85) for n, _ in encoder.named_parameters()
    }
    assert max(scales.values()) == 1
    for name, scale in scales.items():
        if name.startswith(("model.head.", "model.norm.")):
            assert scale == 1
        elif ".patch_embed." in name or ".pos_embed" in name:
            assert scale == pytest.approx(0.85 ** (depth + 1))
        else:
            assert scale < 1


@pytest.mark.parametrize("family", ["hiera", "swin"])
def test_the_forward_compiles_to_one_graph(family):
    encoder = small_encoder(family)
    taps = (Tap("scores"), Tap("output"))
    compiled = torch.compile(encoder, backend="eager", fullgraph=True)
    found = compiled(small_images(), None, taps).taps
    for tap, value in encoder(small_images(), None, taps).taps.items():
        torch.testing.assert_close(found[tap], value)


@pytest.mark.parametrize("family", ["hiera", "swin"])
def test_an_encoder_cast_to_bf16_takes_float_images(family):
    encoder = small_encoder(family).to(torch.bfloat16)
    tokens = encoder(small_images()).tokens
    assert tokens.dtype == torch.bfloat16
    expected = small_encoder(family)(small_images()).tokens
    # bf16 keeps 8 bits; the error of a model of a few blocks stays within some of its steps.
    assert (tokens.float() - expected).abs().max() < 0.1 * expected.abs().max()


@pytest.mark.parametrize(
    "family", ["augreg", "siglip", "deit-distilled", "tinymim-star", "hiera", "swin"]
)
def test_classifiers_compute_in_float32_under_autocast(family):
    encoder = small_encoder(family)
    with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16):
        found = encoder(small_images(), taps=(Tap("logits"), Tap("output"))).taps
    logits = found[Tap("logits")]
    assert logits.dtype == torch.float32
    assert not torch.equal(logits, logits.bfloat16().float())
    with torch.no_grad():
        half = encoder.to(torch.bfloat16)(small_images(), taps=(Tap("logits"),)).taps
    assert half[Tap("logits")].dtype == torch.bfloat16


@pytest.mark.parametrize("family", HIERARCHICAL)
def test_paths_are_dropped_alike_whatever_is_tapped(family):
    encoder = small_encoder(family).train()
    set_drop_path(encoder, [0.5] * encoder.facts.depth)
    index = next(k for k in range(1, len(encoder.blocks)) if encoder.facts.num_heads[k])
    taps = [Tap(kind, index) for kind in ("tokens", "attention_output", "mlp_output")]
    seen = []
    for asked in (taps[:1], taps):
        torch.manual_seed(0)
        seen.append(encoder(small_images(8), taps=tuple(asked)).taps[taps[0]])
    torch.testing.assert_close(*seen)
    assert not torch.equal(seen[0], encoder.eval()(small_images(8), taps=(taps[0],)).taps[taps[0]])
