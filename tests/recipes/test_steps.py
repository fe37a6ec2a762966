"""Automatic values: steps from epochs and images, the peak rate from base rate and batch."""

import pytest

from limbeck.engine.options import OptimOptions, TrainOptions
from limbeck.errors import UserError
from limbeck.recipes.steps import resolve


def resolved(num_images, **train):
    return resolve(num_images, 224, {}, OptimOptions(), TrainOptions(**train))


def test_the_paper_s_numbers():
    found = resolved(1_281_167, epochs=300, global_batch_size=4096)
    assert found.steps_per_epoch == 312
    assert found.total_steps == 93_600
    assert found.peak_lr == pytest.approx(2.4e-3)  # 1.5e-4 * 4096 / 256
    assert found.warmup_epochs == 15
    assert found.sentence() == (
        "1,281,167 images, 312 steps per epoch, 93,600 steps in all, peak learning rate 0.0024 "
        "after 15 epochs of warm-up, 224 px"
    )


def test_part_of_an_epoch():
    assert resolved(100, epochs=0.5, global_batch_size=10).total_steps == 5


def test_less_than_one_step_is_refused():
    with pytest.raises(UserError, match="train.epochs 0.01 of 10 steps each is less than one"):
        resolved(100, epochs=0.01, global_batch_size=10)


@pytest.mark.parametrize("num_images", [1, 9])
def test_too_few_images_says_both_numbers(num_images):
    with pytest.raises(UserError, match=f"There are {num_images} images .* batch of 10"):
        resolved(num_images, epochs=1, global_batch_size=10)


def test_a_batch_that_the_processes_can_t_share():
    train = TrainOptions(epochs=1, global_batch_size=16, accumulate_steps=2)
    assert resolve(100, 224, {}, OptimOptions(), train, world_size=4).total_steps == 6
    with pytest.raises(UserError, match="can't be cut into 3 processes x 2 accumulation steps"):
        resolve(100, 224, {}, OptimOptions(), train, world_size=3)
