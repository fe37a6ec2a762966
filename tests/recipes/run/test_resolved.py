"""Automatic values: steps from epochs and images, the peak rate from base rate and batch."""

import pytest

from limbeck.engine.options import OptimOptions, TrainOptions
from limbeck.errors import UserError
from limbeck.recipes.run.resolved import fit_batch, fitting_batch, resolve


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


@pytest.mark.parametrize(
    ("num_images", "batch", "shares", "expected"),
    [
        (256, 256, 1, 256),  # filled: as it is
        (255, 256, 1, 32),  # 7 steps an epoch
        (100, 256, 1, 16),
        (30, 64, 1, 4),
        (8, 256, 1, 2),
        (2, 256, 1, 2),
        (1, 256, 1, 256),  # which is refused
        (100, 256, 4, 16),
        (40, 256, 4, 8),  # pairs for each of the four
        (7, 256, 4, 256),  # not even these: refused
    ],
)
def test_a_batch_that_is_not_filled_is_fitted(num_images, batch, shares, expected):
    train = TrainOptions(global_batch_size=batch, accumulate_steps=shares)
    assert fitting_batch(num_images, train) == expected


def test_a_fitted_run_may_go_on_with_another_number_of_processes():
    optim, train = OptimOptions(), fit_batch(TrainOptions(epochs=2), 100)
    one, two, four = (resolve(100, 224, {}, optim, train, world_size=n) for n in (1, 2, 4))
    assert one == two == four and one.total_steps == 12  # of batches of 16
    with pytest.raises(UserError, match="can't be cut into 32 processes"):
        resolve(100, 224, {}, optim, train, world_size=32)


def test_a_fitted_batch_is_said(caplog):
    train = TrainOptions(epochs=7)
    assert fit_batch(train, 256) is train and not caplog.text
    fitted = fit_batch(train, 100, option="--tune.train")
    assert (fitted.global_batch_size, fitted.epochs) == (16, 7)
    assert "100 training images do not fill a batch of 256: a step has 16" in caplog.text
    assert "(--tune.train.global-batch-size 16)" in caplog.text


@pytest.mark.parametrize("num_images", [1, 9])
def test_too_few_images_says_both_numbers(num_images):
    with pytest.raises(UserError, match=f"There are {num_images} images .* batch of 10"):
        resolved(num_images, epochs=1, global_batch_size=10)


def test_a_batch_that_the_processes_can_t_share():
    train = TrainOptions(epochs=1, global_batch_size=16, accumulate_steps=2)
    assert resolve(100, 224, {}, OptimOptions(), train, world_size=4).total_steps == 6
    with pytest.raises(UserError, match="can't be cut into 3 processes x 2 accumulation steps"):
        resolve(100, 224, {}, OptimOptions(), train, world_size=3)
