"""Agreement of neighbours and CKA against slow loops and known cases."""

import pytest
import torch

from limbeck.errors import UserError
from limbeck.evaluation import neighbours
from limbeck.evaluation.neighbours import agreement, linear_cka, nearest


def slow_neighbours(features, k):
    """Sets of the k nearest others by cosine, from the definition."""
    x = features.double()
    found = []
    for i in range(len(x)):
        cosine = [
            (float(x[i] @ x[j] / (x[i].norm() * x[j].norm())), j) for j in range(len(x)) if j != i
        ]
        found.append({j for _, j in sorted(cosine, reverse=True)[:k]})
    return found


@pytest.mark.parametrize("chunk", [1, 100, 2**25])
def test_agreement_is_the_mean_share_of_common_neighbours(monkeypatch, chunk):
    monkeypatch.setattr(neighbours, "CHUNK_ELEMENTS", chunk)
    student, teacher = torch.randn(40, 5), torch.randn(40, 9)
    teacher[:, :5] += 2 * student
    pairs = zip(slow_neighbours(student, 7), slow_neighbours(teacher, 7), strict=True)
    expected = sum(len(a & b) / 7 for a, b in pairs) / 40
    found = agreement(student, teacher, k=7)
    assert found.neighbours.mean == pytest.approx(expected, abs=1e-6)
    assert "7 nearest neighbours, among 39 other images" in found.neighbours.how


def test_equal_up_to_rotation_and_scale_is_full_agreement():
    student = torch.randn(60, 8)
    rotation, _ = torch.linalg.qr(torch.randn(8, 8))
    found = agreement(student, 3 * student @ rotation)
    assert found.neighbours.mean == 1
    assert found.cka == pytest.approx(1)


def test_unrelated_features_agree_by_chance():
    found = agreement(torch.randn(1000, 16), torch.randn(1000, 16))
    # 10,000 draws with p = 0.01: three standard deviations are 0.003.
    assert found.neighbours.mean == pytest.approx(10 / 999, abs=0.003)
    assert found.cka < 0.05


def test_an_image_is_not_its_own_neighbour_in_any_chunk(monkeypatch):
    monkeypatch.setattr(neighbours, "CHUNK_ELEMENTS", 30)
    features = torch.randn(20, 4)
    _, indices = nearest(features, features, 19, is_self=True)
    assert all(set(row.tolist()) == set(range(20)) - {i} for i, row in enumerate(indices))


def test_k_is_limited_in_small_sets_and_two_images_are_too_few():
    few = agreement(torch.randn(7, 4), torch.randn(7, 4), k=10)
    assert "2 nearest" in few.neighbours.how
    with pytest.raises(UserError, match="three images or more"):
        agreement(torch.randn(2, 4), torch.randn(2, 4))
    with pytest.raises(ValueError, match="7 student and 6 teacher"):
        agreement(torch.randn(7, 4), torch.randn(6, 4))


def test_cka_is_the_one_of_gram_matrices():
    student, teacher = torch.randn(30, 4), torch.randn(30, 6)
    teacher[:, :4] += student
    centre = torch.eye(30).double() - 1 / 30
    k, l = (centre @ x.double() @ x.double().T @ centre for x in (student, teacher))  # noqa: E741
    expected = (k * l).sum() / (k.norm() * l.norm())
    assert linear_cka(student, teacher) == pytest.approx(float(expected), rel=1e-9)


def test_cka_of_constant_features_is_zero():
    assert linear_cka(torch.ones(5, 3), torch.randn(5, 3)) == 0
