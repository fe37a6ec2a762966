"""Known parameter and MAC counts, speed with a clock of our own."""

import pytest
import timm
import torch

from limbeck.evaluation.cost import (
    PARTS,
    activation_bytes,
    costs_of,
    count_macs,
    macs_by_part,
    measure_speed,
    peak_memory_mib,
    reset_peak_memory,
)
from limbeck.models.build import build_student
from limbeck.models.encoder import Encoder, EncoderFacts
from limbeck.models.options import StudentOptions
from limbeck.records import Features, Tap
from tests.fakes import FakeEncoder


class TimmEncoder(Encoder):
    """A timm model as it is: enough to be counted."""

    def __init__(self, name):
        super().__init__()
        self.model = timm.create_model(name, num_classes=0)
        self.facts = EncoderFacts(
            192, 12, (3,) * 12, 1, True, 16, (224, 224), (0.5,) * 3, (0.5,) * 3, 0, {}, {}
        )

    def forward(self, images, ids_keep=None, taps=(), mask_token=None):
        return Features(self.model.forward_features(images), 1, self.facts.grid)

    def offered_taps(self):
        return ("output",)

    def layer_id(self, parameter_name):
        return 0

    def set_num_heads(self, block, num_heads):
        raise NotImplementedError


def vit_macs(dim, depth, num_tokens, patch_values):
    """Patch embedding, then per block: qkv, proj, MLP (12 D^2 a token) and two N x N products."""
    embedding = (num_tokens - 1) * patch_values * dim
    block = 12 * num_tokens * dim**2 + 2 * num_tokens**2 * dim
    return embedding + depth * block


def test_vit_tiny_has_the_counts_everybody_states():
    encoder = TimmEncoder("vit_tiny_patch16_224")
    macs = count_macs(encoder)
    assert macs == vit_macs(192, 12, 197, 768)
    assert round(macs / 1e9, 2) == 1.25
    assert sum(parameter.numel() for parameter in encoder.parameters()) == 5_524_416


def test_costs_are_speed_too_where_it_is_asked_for():
    encoder = FakeEncoder()
    found = costs_of(encoder, None)
    assert found["parameters"] == sum(each.numel() for each in encoder.parameters())
    assert found.keys() == {"parameters", "macs"} and found["macs"] == count_macs(encoder)
    assert costs_of(encoder, 2)["images_per_second"] > 0


def ticking(seconds):
    """A clock whose readings are the running sums of ``seconds``."""
    times = [0.0]
    for second in seconds:
        times.append(times[-1] + second)
    return iter(times).__next__


def test_speed_is_the_median_after_two_warm_up_runs():
    lengths = [50, 50, 2, 1, 9]
    clock = ticking([x for length in lengths for x in (length, 0)])
    assert measure_speed(FakeEncoder(), 4, num_runs=3, clock=clock) == 4 / 2


def test_measuring_leaves_the_mode_as_it_was():
    encoder = FakeEncoder().train()
    assert count_macs(encoder) == 5 * 48 * 24
    assert measure_speed(encoder, 3, num_runs=2) > 0
    assert encoder.training


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_on_a_gpu_too():
    encoder = TimmEncoder("vit_tiny_patch16_224").cuda()
    assert measure_speed(encoder, 8) > 0
    assert count_macs(encoder) == vit_macs(192, 12, 197, 768)


def test_peak_memory_is_that_since_the_reset():
    cpu = torch.device("cpu")
    big = torch.ones(16 * 2**20)  # 64 MiB, touched
    before = peak_memory_mib(cpu)
    if before is None:
        pytest.skip("this system does not tell")
    del big
    reset_peak_memory(cpu)
    small = peak_memory_mib(cpu)
    again = torch.ones(32 * 2**20)
    assert peak_memory_mib(cpu) - small > 100
    assert again.numel() and before > 64


def student(name, num_classes=0):
    return build_student(StudentOptions(name=name), num_classes=num_classes, seed=0)


def test_macs_are_told_by_part():
    encoder = student("vit_tiny:img_size=32:patch_size=8:embed_dim=24:depth=2:num_heads=2", 10)
    macs = macs_by_part(encoder, (Tap("logits"),))
    tokens = 17  # 16 patches and a CLS token
    assert macs == dict.fromkeys(PARTS, 0) | {
        "patches": 16 * 192 * 24,
        "projections": 2 * 4 * tokens * 24**2,
        "products": 2 * 2 * tokens**2 * 24,
        "MLP": 2 * 8 * tokens * 24**2,
        "neck and head": 24 * 10,
    }
    assert count_macs(encoder) == sum(macs.values()) - 240  # nobody asked for logits


@pytest.mark.parametrize(
    ("name", "parts"),
    [
        ("tiny_vit_5m:img_size=64:embed_dims=32-32-32-32", {"convolutions"}),
        ("hiera_46:img_size=64:embed_dim=8", {"other"}),
        ("swin_48:embed_dim=12", {"other"}),
    ],
)
def test_stages_have_parts_of_their_own(name, parts):
    encoder = student(name)
    with torch.device("meta"):
        macs = macs_by_part(encoder)
    assert sum(macs.values()) == count_macs(encoder)
    usual = {"patches", "projections", "products", "MLP"}
    assert {part for part, count in macs.items() if count} == usual | parts


class Chain(FakeEncoder):
    """Three tensors, of which two are there at once."""

    def forward(self, images, ids_keep=None, taps=(), mask_token=None):
        first = images.new_zeros(1000)
        second = first + 1
        del first
        third = second.view(10, 100) * 2  # a view takes nothing
        return Features(third, 0, self.facts.grid)


def test_activations_are_those_alive_at_once():
    image = 4 * 3 * 8 * 8
    assert activation_bytes(Chain()) == image + 2 * 4000
    small, large = (student(f"vit_tiny:img_size={side}:depth=3") for side in (32, 64))
    assert 3 < activation_bytes(large) / activation_bytes(small) < 5
    again = student("vit_tiny:img_size=32:depth=5")
    assert activation_bytes(again) == activation_bytes(small)  # depth alone keeps nothing
