"""Similarities of patches against a loop written from the formula; what they do not depend on."""

import math

import pytest
import torch

from limbeck.errors import UserError
from limbeck.methods.cls_patch import OUTPUT
from limbeck.methods.options import OutputSimilarityOptions
from limbeck.methods.output_similarity import OutputSimilarity
from limbeck.records import Batch, Features
from tests.fakes import FakeEncoder

NO_BATCH = Batch(torch.zeros(1), torch.zeros(1), None, (), torch.zeros(1))


def built(**options):
    student, teacher = FakeEncoder(embed_dim=8), FakeEncoder(embed_dim=12, seed=1)
    options = OutputSimilarityOptions(**options)
    return OutputSimilarity(options, student.facts, teacher.facts).double()


def losses_of(method, own, target):
    seen = [Features(None, 1, (2, 2), {OUTPUT: value}) for value in (own, target)]
    return method(*seen, NO_BATCH)


def cosine(x, y):
    sizes = [math.sqrt(sum(value**2 for value in each)) for each in (x, y)]
    return sum(map(float.__mul__, x, y)) / sizes[0] / sizes[1]


def softmax(values):
    weights = [math.exp(value) for value in values]
    return [weight / sum(weights) for weight in weights]


def drawn():
    own = torch.randn(3, 5, 8, dtype=torch.float64)
    return own, 3 * torch.randn(3, 5, 12, dtype=torch.float64) + 1


@pytest.mark.parametrize("kind", ["kl", "gram"])
def test_equals_a_loop_written_from_the_formula(kind):
    options = {"temperature": 0.2} if kind == "kl" else {}
    method = built(kind=kind, weight=2.0, global_weight=0.5, **options)
    own, target = drawn()
    losses = losses_of(method, own, target)
    total, globals_ = 0.0, 0.0
    for x, y in zip(own.tolist(), target.tolist(), strict=True):
        for i in range(1, 5):
            s, t = ([cosine(z[i], z[j]) for j in range(1, 5)] for z in (x, y))
            if kind == "kl":
                p, q = (softmax([value / 0.2 for value in row]) for row in (t, s))
                total += sum(a * math.log(a / b) for a, b in zip(p, q, strict=True)) / 4
            else:
                total += sum((a - b) ** 2 for a, b in zip(s, t, strict=True)) / 16
        said = method.proj(torch.tensor(x[0], dtype=torch.float64)).tolist()
        globals_ += 1 - cosine(said, y[0])
    assert losses.parts["similarity"].item() == pytest.approx(2 * total / 3, rel=1e-9)
    assert losses.parts["global"].item() == pytest.approx(0.5 * globals_ / 3, rel=1e-9)


@pytest.mark.parametrize("kind", ["kl", "gram"])
def test_lengths_and_turns_do_not_count(kind):
    method = built(kind=kind, global_weight=0.0)
    own = drawn()[0]
    turn = torch.linalg.qr(torch.randn(12, 12, dtype=torch.float64))[0]
    same = torch.cat((own, torch.zeros(3, 5, 4, dtype=torch.float64)), 2) @ turn * 7
    losses = losses_of(method, own, same)
    assert abs(losses.total.item()) < 1e-12 and set(losses.parts) == {"similarity"}


def test_a_temperature_without_effect_is_refused():
    with pytest.raises(UserError, match="no effect with the kind 'gram'"):
        OutputSimilarityOptions(kind="gram", temperature=0.2)
