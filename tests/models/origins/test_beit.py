import pytest
import torch

from limbeck.errors import UserError
from limbeck.models.origins.beit import check_indices
from limbeck.models.origins.load import load_encoder
from tests.models.origins import writers


def test_golden_indices():
    """27 * 27 pairs of patches, and three with the CLS token."""
    index = writers.relative_index(14)
    assert [index[1, 1].item(), index[1, 196].item(), index[196, 1].item()] == [364, 0, 728]
    assert [index[0, 1].item(), index[1, 0].item(), index[0, 0].item()] == [729, 730, 731]
    check_indices({"blocks.0.attn.relative_position_index": index}, "a file")


def test_another_order_of_pairs_is_refused():
    index = writers.relative_index(4)
    sizes = (torch.tensor(3), torch.zeros(0, 0), torch.zeros(10**6, 1))  # nothing is computed
    for wrong in (index.T, index[1:, 1:], index[:, :5], *sizes):
        with pytest.raises(
            UserError, match="a file: b.relative_position_index is not BEiT's order"
        ):
            check_indices({"b.relative_position_index": wrong}, "a file")


def test_tables_take_another_grid(tmp_path):
    weights = writers.with_separate_bias(writers.with_relative(writers.fine_tuned(192)))
    torch.save(weights, tmp_path / "a.pth")
    encoder = load_encoder(tmp_path / "a.pth", img_size=48)
    table = encoder.model.blocks[0].attn.relative_position_bias_table
    assert table.shape == (11 * 11 + 3, 12)
    kept = weights["blocks.0.attn.relative_position_bias_table"][-3:]
    torch.testing.assert_close(table[-3:], kept)
    assert encoder(torch.rand(1, 3, 48, 48)).tokens.shape == (1, 37, 192)
