import pytest

from limbeck.ops.schedules import cosine_lr, cosine_momentum, layer_scale, peak_lr, poly_lr, step_lr


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


def test_layer_scale_of_24_blocks():
    assert layer_scale(0, 24, 0.95) == pytest.approx(0.277390, rel=2e-6)  # G2SD's ViT-L


def test_cosine_momentum_rises_from_its_start_to_one():
    assert cosine_momentum(0, 10, 0.99) == pytest.approx(0.99)
    assert cosine_momentum(5, 10, 0.99) == pytest.approx(0.995)
    assert cosine_momentum(10, 10, 0.99) == 1.0


# TinyViT's (arXiv 2207.10666), computed from its released configurations: distillation on
# ImageNet-22k, ImageNet-1k from scratch, 22k to 1k, 224 to 384 pixels.
TINY_VIT = {
    "distil": dict(steps_per_epoch=3466, epochs=90.0, warmup_epochs=5.0, peak_lr=2e-3,
                   min_lr=4e-5, warmup_lr=4e-6),
    "scratch": dict(steps_per_epoch=1251, epochs=300.0, warmup_epochs=20.0, peak_lr=1e-3,
                    min_lr=1e-5, warmup_lr=1e-6),
    "22k-to-1k": dict(steps_per_epoch=1251, epochs=30.0, warmup_epochs=5.0, peak_lr=5e-4,
                      min_lr=2e-5, warmup_lr=1e-6),
    "384": dict(steps_per_epoch=1251, epochs=30.0, warmup_epochs=5.0, peak_lr=4e-5,
                min_lr=4e-7, warmup_lr=4e-8),
}  # fmt: skip


@pytest.mark.parametrize(
    ("recipe", "step", "lr"),
    [
        ("distil", 0, 4e-6),
        ("distil", 1, 4.115175995e-6),
        ("distil", 17_329, 1.999884824e-3),
        ("distil", 17_330, 1.985111598e-3),
        ("distil", 155_970, 1.02e-3),
        ("distil", 311_939, 4.000000005e-5),
        ("scratch", 1, 1.039928058e-6),
        ("scratch", 25_019, 9.999600719e-4),
        ("scratch", 25_020, 9.891830624e-4),
        ("scratch", 187_650, 5.05e-4),
        ("22k-to-1k", 1, 1.079776179e-6),
        ("22k-to-1k", 6254, 4.999202238e-4),
        ("22k-to-1k", 6255, 4.678460969e-4),
        ("22k-to-1k", 18_765, 2.6e-4),
        ("384", 6254, 3.999361151e-5),
        ("384", 6255, 3.734730299e-5),
        ("384", 18_765, 2.02e-5),
    ],
)
def test_cosine_lr_from_the_start(recipe, step, lr):
    found = cosine_lr(step, **TINY_VIT[recipe], is_shifted=False)
    assert found == pytest.approx(lr, rel=1e-9, abs=0)


STEPS = (0, 1, 750, 1498, 1499, 1500, 1501, 80_000, 159_998, 159_999)


@pytest.mark.parametrize(
    ("is_shifted", "rates"),
    [
        (False, (1e-10, 6.676618e-8, 4.976567e-5, 9.893167e-5, 9.899708e-5, 9.90625e-5,
                 9.9061875e-5, 5e-5, 1.25e-9, 6.25e-10)),
        (True, (1e-10, 6.681107e-8, 5.003341e-5, 9.993329e-5, 1e-4, 1e-4, 9.999937e-5,
                5.047287e-5, 6.309e-10, 0.0)),
    ],
)  # fmt: skip
def test_poly_lr_as_published(is_shifted, rates):
    """Golden row 6: mmcv's curve, and mmengine's, of 160,000 steps with 1,500 of warm-up."""
    for step, expected in zip(STEPS, rates, strict=True):
        found = poly_lr(
            step, steps_per_epoch=1000, epochs=160.0, warmup_epochs=1.5, peak_lr=1e-4, min_lr=0.0,
            warmup_lr=1e-10, is_shifted=is_shifted,
        )  # fmt: skip
        assert found == pytest.approx(expected, rel=1e-4 if step == 159_998 else 5e-7, abs=0)


@pytest.mark.parametrize("is_shifted", [False, True])
def test_poly_lr_without_warmup_and_past_its_end(is_shifted):
    settings = {"steps_per_epoch": 10, "epochs": 2.0, "peak_lr": 1.0, "is_shifted": is_shifted}
    flat = [poly_lr(s, warmup_epochs=0.0, min_lr=0.1, **settings) for s in range(25)]
    assert flat[0] == 1 and flat == sorted(flat, reverse=True)
    assert flat[20:] == [pytest.approx(0.1)] * 5
    short = poly_lr(0, warmup_epochs=0.1, min_lr=0.0, **settings)
    assert short == 0


def test_step_lr_as_published():
    """Golden row 21: MAE-Lite's detection, 184,375 steps with 250 of warm-up."""
    steps = (0, 125, 249, 250, 163_887, 163_888, 177_545, 177_546)
    rates = (1e-7, 5.005e-5, 9.96004e-5, 1e-4, 1e-4, 1e-5, 1e-5, 1e-6)
    settings = {
        "steps_per_epoch": 1475, "epochs": 125.0, "warmup_epochs": 250 / 1475, "peak_lr": 1e-4,
        "warmup_lr": 1e-7, "drops": (0.8888841, 0.9629614),
    }  # fmt: skip
    found = [step_lr(step, min_lr=0.0, **settings) for step in steps]
    assert found == pytest.approx(rates, rel=1e-9)
    assert step_lr(184_000, min_lr=5e-6, **settings) == 5e-6
