import pytest

from limbeck.ops.schedules import cosine_lr, cosine_momentum, layer_scale, peak_lr


# TinyMIM's recipes, computed once from its formula; printed to 8 digits.
@pytest.mark.parametrize(
    ("step", "lr"),
    [
        (0, 0.0),
        (1, 5.1282051e-7),
        (312, 1.6e-4),
        (2340, 1.2e-3),
        (4679, 2.3994872e-3),
        (4680, 2.4e-3),
        (49140, 1.2e-3),
        (93288, 7.2904927e-8),
        (93599, 7.4894877e-13),
    ],
)
def test_cosine_lr_of_pretraining(step, lr):
    peak = peak_lr(1.5e-4, 4096)
    found = cosine_lr(
        step, steps_per_epoch=312, epochs=300.0, warmup_epochs=15.0, peak_lr=peak, min_lr=0.0
    )
    assert found == pytest.approx(lr, rel=5e-8, abs=0)


# MAE-Lite's, 40 of 400 epochs of warm-up at batch 4096.
@pytest.mark.parametrize(
    ("step", "lr"),
    [
        (0, 0.0),
        (1, 1.923076923e-7),
        (6240, 1.2e-3),
        (12_480, 2.4e-3),
        (40_560, 2.0485281374e-3),
        (68_640, 1.2e-3),
        (96_720, 3.514718626e-4),
        (124_800, 0.0),
    ],
)
def test_cosine_lr_of_masked_pretraining(step, lr):
    found = cosine_lr(
        step, steps_per_epoch=312, epochs=400.0, warmup_epochs=40.0, peak_lr=2.4e-3, min_lr=0.0
    )
    assert found == pytest.approx(lr, rel=1e-9, abs=0)


@pytest.mark.parametrize(
    ("step", "lr"),
    [
        (0, 0.0),
        (1, 3.1974420e-7),
        (1251, 4e-4),
        (6254, 1.9996803e-3),
        (6255, 2e-3),
        (65677, 1.0005132e-3),
        (123849, 1.5464693e-6),
        (125099, 1.0000003e-6),
    ],
)
def test_cosine_lr_of_finetuning(step, lr):
    peak = peak_lr(5e-4, 1024)
    found = cosine_lr(
        step, steps_per_epoch=1251, epochs=100.0, warmup_epochs=5.0, peak_lr=peak, min_lr=1e-6
    )
    assert found == pytest.approx(lr, rel=5e-8, abs=0)


def test_cosine_lr_without_warmup_starts_at_the_peak_and_stays_at_the_minimum():
    def lr(step):
        return cosine_lr(
            step, steps_per_epoch=10, epochs=2.0, warmup_epochs=0.0, peak_lr=1.0, min_lr=0.1
        )

    assert lr(0) == 1.0
    assert lr(20) == lr(500) == 0.1


# Golden number 7.
@pytest.mark.parametrize(
    ("decay", "scales"),
    [
        (0.65, [0.00369720589, 0.00568800906, 0.04902227891, 0.65, 1]),
        (0.75, [0.02375726402, 0.03167635202, 0.13348388672, 0.75, 1]),
        (0.8, [0.05497558139, 0.06871947674, 0.2097152, 0.8, 1]),
    ],
)
def test_layer_scale(decay, scales):
    found = [layer_scale(layer, 12, decay) for layer in (0, 1, 6, 12, 13)]
    assert found == pytest.approx(scales, rel=1e-9)


def test_cosine_momentum_rises_from_its_start_to_one():
    assert cosine_momentum(0, 10, 0.99) == pytest.approx(0.99)
    assert cosine_momentum(5, 10, 0.99) == pytest.approx(0.995)
    assert cosine_momentum(10, 10, 0.99) == 1.0
