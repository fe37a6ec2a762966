"""The fusion of stages: published counts, and a convolution over the whole picture as reference."""

import torch
from torch.nn import functional as F

from limbeck.models.build import build_student
from limbeck.models.mae import MaeDecoder
from limbeck.models.options import StudentOptions
from limbeck.models.stage_fusion import StageFusion, ends_of_stages
from limbeck.records import Tap
from tests.models.families import small_encoder, small_images


def count(module):
    return sum(parameter.numel() for parameter in module.parameters())


def test_counts_of_the_small_hiera_of_the_study():
    with torch.device("meta"):
        student = build_student(StudentOptions(name="hiera_46"), seed=0)
        facts = student.facts
        fusion = StageFusion(facts)
        decoder = MaeDecoder(facts.output_dim, (14, 14), 16, 96, 1, 3, False, True)
    assert count(fusion.heads) == 407_008
    assert count(decoder) == 240_864
    encoder = count(student) - count(student.model.head)  # its norm is the classifier's
    assert encoder + count(fusion) + count(decoder) == 6_973_838
    assert fusion.taps == (Tap("tokens", 0), Tap("tokens", 2), Tap("output"))


def test_ends_of_stages_are_where_tokens_are_merged():
    assert ends_of_stages(small_encoder("augreg").facts) == ()
    assert ends_of_stages(small_encoder("hiera").facts) == (0,)  # pooled once
    assert ends_of_stages(small_encoder("hiera-pooled").facts) == (0, 1)


def test_all_units_are_fused_as_by_a_convolution_over_the_picture():
    encoder = small_encoder("hiera-pooled")
    facts, fusion = encoder.facts, StageFusion(encoder.facts)
    full = encoder(small_images(), taps=fusion.taps).taps
    pictures = full[Tap("output")].mT.unflatten(-1, facts.grid)
    for head, tap in zip(fusion.heads, fusion.taps, strict=False):
        sides = [side // facts.tap_stride(tap) for side in facts.img_size]
        stage = full[tap].mT.unflatten(-1, sides)
        pictures = pictures + F.conv2d(stage, head.weight, head.bias, stride=head.stride)
    expected = fusion.norm(pictures.flatten(2).mT)
    units = torch.arange(4).expand(2, -1)
    fused = fusion(encoder(small_images(), units, fusion.taps).taps)
    torch.testing.assert_close(fused, expected, rtol=1e-4, atol=1e-5)  # another order of sums
