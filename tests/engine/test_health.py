"""The watch over a run's loss: it speaks of a plateau once, and of nothing else."""

import json

import pytest
import torch

from limbeck.engine.health import MIN_STEPS, Health, Watch
from limbeck.records import Losses
from tests.engine.fakes import TinyModule, fake_batches, read_metrics, train

HEALTH = Health(0.5, 0.1, ("the first cause", "the second"))
TOTAL = 400  # windows of 20 steps


def watched(loss_at, *, total=TOTAL, warmup=0, health=HEALTH, at_zero=0.25):
    """(step, text) of all that is said of a run whose loss is ``at_zero * loss_at(progress)``."""
    watch = Watch(health, total, warmup)
    said = []
    for step in range(1, total + 1):
        text = watch.add(step, {"total": at_zero * loss_at(step / total), "at_zero": at_zero})
        said += [(step, text)] if text else []
    return said, watch


def noisy(loss_at, size=0.05):
    generator = torch.Generator().manual_seed(0)
    return lambda progress: loss_at(progress) + size * torch.randn((), generator=generator).item()


def test_a_constant_loss_is_a_plateau_told_once_and_at_the_end():
    said, watch = watched(lambda progress: 0.8)
    assert [step for step, _ in said] == [1, 100, 400]
    assert said[0][1].startswith("A student that predicts nothing has a loss of 0.25")
    assert said[0][1].endswith("falls below it, and a long one ends near 0.025.")
    assert said[1][1] == (
        "WARNING: the loss has hardly fallen for 80 steps and is 80% of what predicting nothing "
        "gives; a healthy run gets below 50%. Likely causes: the first cause; the second."
    )
    assert said[2][1].startswith("WARNING: the loss ends at 80% of what predicting nothing gives")
    assert watch.record() == {"loss_share": pytest.approx(0.8), "plateau_step": 100}


def test_noise_changes_nothing():
    said, _ = watched(noisy(lambda progress: 0.8))
    assert [step for step, _ in said] == [1, 100, 400]


@pytest.mark.parametrize(
    "loss_at",
    [
        lambda progress: 1.2 * (1 - progress) + 0.1,
        lambda progress: 0.9 - 0.5 * progress,  # slowly, past the middle only late
        lambda progress: 0.08 + torch.exp(torch.tensor(-6 * progress)).item(),
        lambda progress: 0.4,  # flat, but low
    ],
    ids=["linear", "slow", "exponential", "flat"],
)
def test_a_healthy_loss_is_left_alone(loss_at):
    for shape in (loss_at, noisy(loss_at, 0.02)):
        said, watch = watched(shape)
        assert [step for step, _ in said] == [1]
        assert watch.record()["plateau_step"] is None


def test_a_loss_that_rises_again_is_a_plateau():
    said, _ = watched(lambda progress: 0.6 + progress / 2)
    assert [step for step, _ in said] == [1, 100, 400]


def test_not_while_the_learning_rate_warms_up():
    said, _ = watched(lambda progress: 0.9 if progress <= 0.3 else 0.1, warmup=120)
    assert [step for step, _ in said] == [1]
    said, _ = watched(lambda progress: 0.9, warmup=120)
    assert [step for step, _ in said] == [1, 120 + 100, 400]


@pytest.mark.parametrize("total", [1, 3, MIN_STEPS - 2, MIN_STEPS, 5 * MIN_STEPS - 1])
def test_a_run_too_short_to_judge_is_not(total):
    said, watch = watched(lambda progress: 1.7, total=total)
    assert [step for step, _ in said] == [1]
    assert watch.record() == {"loss_share": pytest.approx(1.7), "plateau_step": None}


def test_the_warm_up_does_not_count_as_length():
    judged = 5 * MIN_STEPS
    said, _ = watched(lambda progress: 0.9, total=judged)
    assert [step for step, _ in said] == [1, judged]
    said, _ = watched(lambda progress: 0.9, total=judged, warmup=1)
    assert [step for step, _ in said] == [1]


def test_the_end_is_a_whole_window():
    """Of 201 steps the last one alone, high by chance, says nothing."""
    said, watch = watched(lambda progress: 0.9 if progress == 1 else 0.3, total=201)
    assert [step for step, _ in said] == [1]
    assert watch.record()["loss_share"] == pytest.approx(0.3)


def test_silent_without_what_it_needs():
    said, watch = watched(lambda progress: 0.9, health=None)
    assert not said and watch.record() == {}
    watch = Watch(HEALTH, 1)
    assert watch.add(1, {"total": 1.0}) is None and watch.record() == {}


# --- In the loop ----------------------------------------------------------------------------------


class Stuck(TinyModule):
    """Its loss says where it would be at zero, and never falls below three quarters of it."""

    def forward(self, batch):
        losses = super().forward(batch)
        total = 0.75 + 0.0 * losses.total
        return Losses(total, {"stuck": total.detach()}, at_zero=torch.ones(()))


class Killed(Exception):
    pass


def killed_at(step):
    def batches(start):
        for number, batch in enumerate(fake_batches(8)(start), start):
            if number == step:
                raise Killed
            yield batch

    return batches


STUCK = {"total_steps": 70, "probes": None, "module": Stuck(), "health": HEALTH}


@pytest.mark.parametrize("stops", [(), (57,), (9, 33, 52)], ids=["whole", "later", "often"])
def test_a_run_tells_of_its_plateau_once_however_often_it_is_stopped(tmp_path, stops):
    for step in stops:
        with pytest.raises(Killed):
            train(tmp_path, batches=killed_at(step), **STUCK)
    _, result = train(tmp_path, **STUCK)
    records = read_metrics(tmp_path)
    findings = [(each["step"], each["finding"]) for each in records if "finding" in each]
    assert [step for step, _ in findings] == [1, 60, 70]
    assert findings[1][1].startswith("WARNING: the loss has hardly fallen for 40 steps and is 75%")
    assert result.health == {"loss_share": 0.75, "plateau_step": 60}
    of_steps = [each["losses"] for each in records if "losses" in each]
    assert of_steps[0] == {"total": 0.75, "stuck": 0.75, "at_zero": 1.0}


def test_a_checkpoint_of_an_earlier_version_is_continued(tmp_path):
    with pytest.raises(Killed):
        train(tmp_path, batches=killed_at(7), **STUCK)
    file = tmp_path / "checkpoint.pt"
    state = torch.load(file, weights_only=True)
    del state["watch"]
    torch.save(state, file)
    _, result = train(tmp_path, **STUCK)
    assert result.step == 70 and result.health["plateau_step"] == 60
    assert json.loads((tmp_path / "metrics.jsonl").read_text().splitlines()[-1])["step"] == 70
