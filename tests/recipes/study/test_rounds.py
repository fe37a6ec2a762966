"""Rounds with a score that is a function of the shape: limits, candidates, baseline, dead ends."""

import pytest

from limbeck.errors import UserError
from limbeck.models.options import StudentOptions
from limbeck.recipes.study.rounds import is_within, limits_of_round, neighbours, run_rounds
from tests.models.test_contraction import PLAIN, TINY


def measure(shape, name):
    """Costs of the right order without a network."""
    if shape.embed_dims is None:
        block = shape.embed_dim**2 * (4 + 2 * shape.mlp_ratio)
        return {"params": shape.depth * block, "macs": 16 * shape.depth * block,
                "latency_ms": shape.depth + shape.embed_dim / 16}[name]  # fmt: skip
    per_stage = zip(shape.embed_dims, shape.depths, shape.window_sizes, strict=True)
    params = sum(d * n * (4 + 2 * shape.mlp_ratio) * d for d, n, _ in per_stage)
    windows = sum(shape.window_sizes[1:])
    return {"params": params, "macs": params * 16 + 100 * windows,
            "latency_ms": params / 1e4 + windows}[name]  # fmt: skip


def trainer(score, log=None):
    def train_and_score(candidates, parent):
        for each in candidates:
            if log is not None:
                log.append((each.name, parent and parent.name))
            each.costs = {name: measure(each.shape, name) for name in ("params", "macs")}
            each.scores = [score(each.shape)]

    return train_and_score


def likes_depth(shape):
    return 0.1 * shape.depth + shape.embed_dim / 1000


def test_the_best_is_the_next_and_the_limits_hold_at_the_end():
    log = []
    limits = {"params": 0.3 * measure(PLAIN, "params")}
    found = run_rounds(PLAIN, limits, 2, measure, trainer(likes_depth, log))
    assert found.winner.shape.depth == 2 and is_within(found.winner.shape, limits, measure)
    assert found.baseline.shape.embed_dim == 24
    assert found.winner.score >= found.baseline.score
    first = [each for each in found.candidates if each.round == 1]
    assert {parent for name, parent in log if name.startswith("round1")} == {"seed"}
    best = max(first, key=lambda each: each.score).name
    assert {p for n, p in log if n.startswith("round2") and "baseline" not in n} == {best}
    middle = limits_of_round(PLAIN, limits, 0.5, measure)
    assert middle["params"] == pytest.approx(0.3**0.5 * measure(PLAIN, "params"))
    assert all(is_within(each.shape, middle, measure) for each in first)


def test_limits_filter_candidates_and_width_helps_factors_that_do_not_reach_them():
    small = {"params": 0.7 * measure(PLAIN, "params")}
    names = dict(neighbours(PLAIN, ("width", "depth", "mlp_ratio", "num_heads"), small, measure))
    assert list(names) == ["width", "depth", "mlp_ratio+width", "num_heads+width"] or list(
        names
    ) == ["width", "depth", "mlp_ratio", "num_heads+width"]
    assert all(is_within(shape, small, measure) for shape in names.values())
    windows = {"latency_ms": measure(TINY, "latency_ms") - 4}
    alone = dict(neighbours(TINY, ("window_sizes.1",), windows, measure))
    assert list(alone) == ["window_sizes.1"]  # a window alone is fast enough


def test_the_same_shape_is_trained_once():
    log = []
    limits = {"params": 0.5 * measure(PLAIN, "params")}
    run_rounds(PLAIN, limits, 1, measure, trainer(likes_depth, log), factors=("width", "depth"))
    assert [name for name, _ in log] == ["seed", "round1_baseline", "round1_depth"]


def test_an_inheriting_baseline_goes_through_all_rounds():
    log = []
    limits = {"params": 0.1 * measure(PLAIN, "params")}
    run_rounds(PLAIN, limits, 3, measure, trainer(likes_depth, log), inherits=True)
    parents = {n: p for n, p in log if "baseline" in n}
    assert list(parents.values()) == ["seed", *list(parents)[:-1]] and len(parents) > 1


def test_a_tiny_vit_is_contracted_by_more_than_its_width():
    limits = {"params": 0.4 * measure(TINY, "params")}

    def likes_width(shape):
        return sum(shape.embed_dims) / 1000

    found = run_rounds(TINY, limits, 3, measure, trainer(likes_width))
    assert found.winner.score > found.baseline.score
    assert {each.factor.split("+")[0].split(".")[0] for each in found.candidates[1:]} >= {
        "embed_dims", "depths", "window_sizes", "mbconv_expand_ratio", "mlp_ratio",
    }  # fmt: skip


def test_limits_that_nothing_meets_name_the_limit_and_the_nearest_shape():
    log = []
    with pytest.raises(UserError, match=r"limit of 1 on params: the nearest shape, vit_tiny.*has"):
        run_rounds(PLAIN, {"params": 1.0}, 2, measure, trainer(likes_depth, log))
    limits = {"params": 1e9, "latency_ms": 2.9}
    with pytest.raises(UserError, match=r"of 2.9 on latency_ms: .*depth=1.*Raise --limits.latency"):
        run_rounds(PLAIN, limits, 1, measure, trainer(likes_depth, log), factors=("depth",))
    assert not log  # nothing was trained before
    with pytest.raises(UserError, match="The seed is within the limits already"):
        run_rounds(PLAIN, {"params": 1e9}, 2, measure, trainer(likes_depth))


def test_where_the_best_leads_nowhere_the_next_best_goes_on():
    def cost(shape, name):  # with one block, only two more factors at once would do
        if shape.depth == 1:
            return 0.3 if (shape.mlp_ratio, shape.num_heads) == (1, 1) else 0.6
        return {2.0: 1.0, 1.5: 0.6, 1.0: 0.3}[shape.mlp_ratio]

    log = []
    likes_shallow = trainer(lambda shape: 1.0 - 0.1 * shape.depth, log)
    factors = ("depth", "mlp_ratio", "num_heads")
    found = run_rounds(PLAIN, {"params": 0.4}, 2, cost, likes_shallow, factors=factors)
    assert found.candidates[1].shape.depth == 1  # the best of the first round
    assert {p for n, p in log if n.startswith("round2")} == {"round1_mlp_ratio"}
    assert found.winner.shape.mlp_ratio == 1 and found.baseline is None


def test_a_candidate_that_breaks_off_is_left_out():
    def train_and_score(candidates, parent):
        trainer(likes_depth)(candidates, parent)
        for each in candidates:
            if each.factor == "depth":
                each.scores, each.failure = [], "The loss is not finite."

    limits = {"params": 0.5 * measure(PLAIN, "params")}
    found = run_rounds(PLAIN, limits, 1, measure, train_and_score)
    (failed,) = (each for each in found.candidates if each.failure)
    assert failed.factor == "depth" and failed.plain()["score"] is None
    assert found.winner.factor != "depth"


def test_shapes_of_other_names_are_other_shapes():
    assert StudentOptions(**vars(PLAIN) | {"name": "vit_small"}).text != PLAIN.text
