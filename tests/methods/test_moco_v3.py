"""MoCo-v3 against a slow reference in float64, built from torch's own batch norm."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from limbeck.methods.moco_v3 import BatchNorm, MocoV3
from limbeck.methods.options import MocoV3Options
from limbeck.models.encoder import EncoderFacts
from limbeck.records import Batch, Features
from tests.fakes import FakeEncoder

BATCH = Batch(torch.rand(6, 3, 8, 8), torch.rand(6, 3, 8, 8), None, tuple("abc"), torch.arange(6))


def features(seed):
    generator = torch.Generator().manual_seed(seed)
    tokens = torch.randn(6, 5, 8, dtype=torch.float64, generator=generator)
    return Features(tokens, 1, (2, 2))


def test_the_loss_is_the_paper_s():
    facts = FakeEncoder().facts
    method = MocoV3(MocoV3Options(hidden_dim=6, out_dim=4, temperature=0.3), facts, None).double()
    student, teacher = features(1), features(2)

    def run(layers, x):
        for layer in layers:
            if isinstance(layer, BatchNorm):
                x = F.batch_norm(x, None, None, layer.weight, layer.bias, training=True)
            else:
                x = layer(x)
        return x

    queries, keys = [], []
    for view in (0, 1):
        own, theirs = student.tokens[view::2, 0], teacher.tokens[view::2, 0]
        queries.append(F.normalize(run(method.predictor, run(method.head, own))))
        keys.append(F.normalize(run(method.teacher_head.network, theirs)))
    total = 0.0
    for one, other in ((0, 1), (1, 0)):
        for i in range(3):
            scores = torch.stack([queries[one][i] @ keys[other][n] / 0.3 for n in range(3)])
            total -= 2 * 0.3 * scores.log_softmax(0)[i] / 3
    losses = method(student, teacher, BATCH)
    torch.testing.assert_close(losses.total, total, rtol=1e-10, atol=0)
    assert losses.parts.keys() == {"contrast"}


def test_the_heads_are_the_paper_s():
    facts = FakeEncoder(embed_dim=8).facts
    assert isinstance(facts, EncoderFacts)
    method = MocoV3(MocoV3Options(hidden_dim=6, out_dim=4), facts, None)
    shapes = [tuple(m.weight.shape) for m in method.head if isinstance(m, nn.Linear)]
    assert shapes == [(6, 8), (6, 6), (4, 6)]
    shapes = [tuple(m.weight.shape) for m in method.predictor if isinstance(m, nn.Linear)]
    assert shapes == [(6, 4), (4, 6)]
    norms = [m.weight is not None for m in method.head if isinstance(m, BatchNorm)]
    assert norms == [True, True, False]


@pytest.mark.parametrize("has_affine", [True, False])
def test_batch_norm_is_torch_s(has_affine):
    own = BatchNorm(3, has_affine).double()
    other = nn.BatchNorm1d(3, affine=has_affine, track_running_stats=False).double()
    x = torch.randn(5, 3, dtype=torch.float64, requires_grad=True)
    y = x.detach().clone().requires_grad_()
    weight = torch.randn(5, 3, dtype=torch.float64)
    (own(x) * weight).sum().backward()
    (other(y) * weight).sum().backward()
    torch.testing.assert_close(own(x), other(y))
    torch.testing.assert_close(x.grad, y.grad)
