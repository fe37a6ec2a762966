"""A classifier from the rows of an older one."""

import pytest
import torch
from torch import nn

from limbeck.errors import UserError
from limbeck.models.head_rows import copy_rows, read_head_index
from limbeck.models.heads import with_classifier
from tests.models.families import small_encoder


def test_rows_and_their_mean():
    own, old = nn.Linear(3, 4), nn.Linear(3, 6)
    copy_rows(own, old, [5, -1, 0, 2])
    for new, values in ((own.weight, old.weight), (own.bias, old.bias)):
        assert torch.equal(new[[0, 2, 3]], values[[5, 0, 2]])
        torch.testing.assert_close(new[1], (values[5] + values[0] + values[2]) / 3)


@pytest.mark.parametrize(
    ("rows", "said"),
    [
        ([0, 1], "2 rows .* and 4 classes"),
        ([0, 1, 2, 6], "rows 0 to 5, and asked for are up to 6"),
        ([-1] * 4, "none of them"),
    ],
)
def test_rows_that_do_not_fit(rows, said):
    own = nn.Linear(3, 4)
    before = own.weight.detach().clone()
    with pytest.raises(UserError, match=said):
        copy_rows(own, nn.Linear(3, 6), rows)
    assert torch.equal(own.weight, before)


def test_a_file_of_indices(tmp_path):
    file = tmp_path / "index.txt"
    file.write_text("17\n-1\n0\n")
    assert read_head_index(file) == [17, -1, 0]
    huge = "9" * 5000
    for text, wrong in (("1\ncat\n", "cat"), ("-2", "-2"), ("", ""), (huge, huge[:40])):
        file.write_text(text)
        with pytest.raises(UserError, match=f"one row .* per line.* and has '{wrong}'"):
            read_head_index(file)
    with pytest.raises(UserError, match="Can't read"):
        read_head_index(tmp_path)


@pytest.mark.parametrize("family", ["tiny-vit", "swin", "mean-pooled", "deit-distilled"])
def test_a_classifier_starts_from_its_rows(family):
    encoder = small_encoder(family)
    model = with_classifier(encoder, 2, None, seed=0, head_rows=[3, 1])
    own, old = (each.model.get_classifier() for each in (model, encoder))
    pairs = zip(own, old, strict=True) if isinstance(own, tuple) else [(own, old)]
    for new, before in pairs:
        assert torch.equal(new.weight, before.weight[[3, 1]])
        assert torch.equal(new.bias, before.bias[[3, 1]])


def test_a_classifier_of_other_features_is_refused():
    with pytest.raises(UserError, match="reads other features"):
        with_classifier(small_encoder("augreg"), 5, "avg", seed=0, head_rows=range(5))
    with pytest.raises(UserError, match="has no classifier to start from"):
        with_classifier(small_encoder("mae"), 5, "token", seed=0, head_rows=range(5))
