import numpy as np
import pytest

from limbeck.data.order import StepOrder, epoch_order, steps_per_epoch
from limbeck.errors import UserError


def test_epoch_order_is_a_permutation_fixed_for_ever():
    assert sorted(epoch_order(100, 0, 0)) == list(range(100))
    assert epoch_order(8, 0, 0).tolist() == [3, 2, 5, 7, 6, 4, 1, 0]
    assert epoch_order(8, 0, 1).tolist() == [4, 0, 2, 7, 5, 3, 1, 6]


def test_seed_and_epoch_change_the_order():
    orders = {tuple(epoch_order(50, seed, epoch)) for seed in range(3) for epoch in range(3)}
    assert len(orders) == 9


@pytest.mark.parametrize(("world_size", "accumulate_steps"), [(1, 1), (2, 1), (1, 4), (2, 2)])
def test_union_over_ranks_and_micro_batches_is_the_same(world_size, accumulate_steps):
    expected = list(StepOrder(21, 3, 8).micro_batches(0, 5))
    shares = [
        list(StepOrder(21, 3, 8, accumulate_steps, rank, world_size).micro_batches(0, 5))
        for rank in range(world_size)
    ]
    for step, (epoch, indices) in enumerate(expected):
        parts = [
            share[step * accumulate_steps + micro]
            for micro in range(accumulate_steps)
            for share in shares
        ]
        assert [part[0] for part in parts] == [epoch] * len(parts)
        assert sum((part[1] for part in parts), []) == indices


def test_each_epoch_takes_every_sample_once_and_drops_the_rest():
    batches = list(StepOrder(10, 0, 4).micro_batches(0, 6))
    assert [epoch for epoch, _ in batches] == [0, 0, 1, 1, 2, 2]
    for first in range(0, 6, 2):
        taken = batches[first][1] + batches[first + 1][1]
        assert len(set(taken)) == 8


def test_starting_at_a_step_is_having_been_there():
    order = StepOrder(10, 0, 4, accumulate_steps=2)
    assert list(order.micro_batches(3, 7)) == list(order.micro_batches(0, 7))[6:]
    assert list(order.micro_batches(7, 7)) == []


def test_indices_are_plain_numbers():
    (_, indices), *_ = StepOrder(4, 0, 4).micro_batches(0, 1)
    assert not any(isinstance(index, np.integer) for index in indices)


def test_uneven_batch_is_refused_with_the_remedy():
    with pytest.raises(UserError, match=r"batch of 10 .* 2 processes x 2 .* 8"):
        StepOrder(100, 0, 10, accumulate_steps=2, world_size=2)
    with pytest.raises(UserError, match=r"global-batch-size 4"):
        StepOrder(100, 0, 1, accumulate_steps=2, world_size=2)


def test_too_few_images_are_said():
    with pytest.raises(UserError, match=r"7 images .* batch of 8; .* 7"):
        steps_per_epoch(7, 8)
    with pytest.raises(UserError, match="1 image"):
        StepOrder(1, 0, 8)
    assert steps_per_epoch(8, 8) == 1 and steps_per_epoch(17, 8) == 2
