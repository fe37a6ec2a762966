"""CLS and patches through projectors, against a loop written from the formula."""

import math

import pytest
import torch

from limbeck.methods.cls_patch import OUTPUT, ClsPatch
from limbeck.methods.options import ClsPatchOptions
from limbeck.records import Batch, Features
from tests.fakes import FakeEncoder

NO_BATCH = Batch(torch.zeros(1), torch.zeros(1), None, (), torch.zeros(1))


def normed(values):
    mean = sum(values) / len(values)
    std = math.sqrt(sum((value - mean) ** 2 for value in values) / len(values) + 1e-6)
    return [(value - mean) / std for value in values]


def apart(own, target, share, beta):
    """Of one token."""
    dot = sum(map(float.__mul__, own, target))
    sizes = [math.sqrt(sum(value**2 for value in each)) for each in (own, target)]
    errors = [abs(a - b) for a, b in zip(own, target, strict=True)]
    smooth = [e**2 / (2 * beta) if e < beta else e - beta / 2 for e in errors]
    return share * (1 - dot / sizes[0] / sizes[1]) + (1 - share) * sum(smooth) / len(smooth)


@pytest.mark.parametrize(("share", "beta", "has_cls"), [(0.9, 1.0, True), (0.3, 0.5, False)])
def test_equals_a_loop_written_from_the_formula(share, beta, has_cls):
    student = FakeEncoder(embed_dim=8, num_prefix_tokens=int(has_cls))
    teacher = FakeEncoder(embed_dim=12, seed=1)
    options = ClsPatchOptions(cosine_share=share, beta=beta, patch_weight=0.5, hidden_dim=6)
    method = ClsPatch(options, student.facts, teacher.facts).double()
    own = torch.randn(3, 4 + has_cls, 8, dtype=torch.float64)
    target = 3 * torch.randn(3, 5, 12, dtype=torch.float64) + 1
    losses = method(
        Features(None, int(has_cls), (2, 2), {OUTPUT: own}),
        Features(None, 1, (2, 2), {OUTPUT: target}),
        NO_BATCH,
    )
    of_cls, of_patches = [], []
    for x, y in zip(own, target, strict=True):
        patches, wanted = x[int(has_cls) :], y[1:]
        first, second = (x[0], y[0]) if has_cls else (patches.mean(0), wanted.mean(0))
        said = method.of_cls(first).tolist()
        of_cls.append(apart(said, normed(second.tolist()), share, beta))
        of_patches += [
            apart(method.of_patches(a).tolist(), normed(b.tolist()), share, beta)
            for a, b in zip(patches, wanted, strict=True)
        ]
    assert losses.parts["cls"].item() == pytest.approx(sum(of_cls) / 3, rel=1e-9)
    assert losses.parts["patch"].item() == pytest.approx(0.5 * sum(of_patches) / 12, rel=1e-9)


def test_projectors_are_of_two_layers_and_as_wide_as_asked():
    facts = FakeEncoder(embed_dim=8).facts, FakeEncoder(embed_dim=12, seed=1).facts
    for asked, hidden in ((None, 12), (20, 20)):
        method = ClsPatch(ClsPatchOptions(hidden_dim=asked), *facts)
        shapes = [tuple(each.shape) for each in method.of_cls.parameters()]
        assert shapes == [(hidden, 8), (hidden,), (12, hidden), (12,)]
        assert method.of_cls[0].weight is not method.of_patches[0].weight
