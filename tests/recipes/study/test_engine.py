"""The engine of studies: trials are finished, fail alone, go on, and may be chosen on the way."""

import json
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import pytest

from limbeck.engine.loop import Interrupted
from limbeck.errors import NotFiniteError, UserError
from limbeck.recipes.study.engine import Arm, Engine, Run, remembered
from limbeck.recipes.study.results import Result


class Folder:
    """An arm of two runs in a folder; what is done is written down in order."""

    def __init__(self, path, done, fails=None):
        self.path, self.done, self.fails = path, done, fails

    def arm(self, name):
        return Arm(name, partial(self.runs, name))

    def runs(self, name, seed):
        for part in ("first", "second"):
            out = self.path / f"{name}_{seed}" / part
            scores = Result({part: float(seed)}, {"size": 2.0})
            yield Run(partial(self.work, out), out, measure=partial(self.measure, out, scores))

    def work(self, out):
        self.done.append(f"{out.parent.name}/{out.name}")
        if self.fails and self.done[-1] == self.fails[0]:
            raise self.fails[1]

    def measure(self, out, found):
        self.done.append(f"measured {out.parent.name}/{out.name}")
        if self.fails and self.done[-1] == self.fails[0]:
            raise self.fails[1]
        return found


def test_all_arms_with_one_seed_then_with_the_next(tmp_path):
    done, after = [], []
    both = Folder(tmp_path, done)
    engine = Engine()
    engine.finish_all([both.arm("a"), both.arm("b")], 2, lambda: after.append(len(done)))
    order = ["a_0", "b_0", "a_1", "b_1"]
    assert done == [
        each for trial in order for part in ("first", "second")
        for each in (f"{trial}/{part}", f"measured {trial}/{part}")
    ]  # fmt: skip
    assert after == [4, 8, 12, 16]
    assert engine.results["b"][1] == Result({"first": 1.0, "second": 1.0}, {"size": 2.0})


@pytest.mark.parametrize("where", ["a_0/second", "measured a_0/second"])
@pytest.mark.parametrize(
    ("error", "said"),
    [(NotFiniteError("NaN in step 3."), "NaN in step 3."), (ValueError("no"), "ValueError: no")],
)
def test_an_arm_that_fails_keeps_what_it_had_and_the_others_go_on(tmp_path, where, error, said):
    done, after = [], []
    both = Folder(tmp_path, done, (where, error))
    engine = Engine(catches=(Exception,))
    engine.finish_all([both.arm("a"), both.arm("b")], 2, lambda: after.append(len(done)))
    assert engine.failures.keys() == {"a"} and engine.failures["a"].endswith(said)
    assert engine.results["a"] == {0: Result({"first": 0.0}, {"size": 2.0})}
    assert list(engine.results["b"]) == [0, 1] and len(after) == 3
    assert not any(each.startswith("a_1") for each in done)


def test_what_is_not_caught_ends_the_study(tmp_path):
    for catches, error in (
        ((), UserError("bad")),
        ((NotFiniteError,), UserError("bad")),
        ((Exception,), Interrupted("Stopped by Ctrl-C.", 2)),
    ):
        done = []
        both = Folder(tmp_path, done, ("a_0/first", error))
        engine = Engine(catches)
        with pytest.raises(type(error)):
            engine.finish_all([both.arm("a"), both.arm("b")], 1)
        assert done == ["a_0/first"] and not engine.failures


def test_what_comes_next_may_hang_on_what_was_found(tmp_path):
    done = []
    both = Folder(tmp_path, done)
    engine = Engine()

    def race():
        for name in ("a", "b"):
            yield both.arm(name), 1
        best = max(engine.results, key=lambda name: engine.results[name][1].scores["first"])
        yield both.arm(best), 2

    engine.finish(race())
    assert list(engine.results["a"]) == [1, 2] and list(engine.results["b"]) == [1]


def test_a_run_costs_what_all_its_attempts_do(tmp_path):
    out = tmp_path / "run"
    out.mkdir()
    (out / "cost.json").write_text(json.dumps({"seconds": 5.0, "memory_mib": 7.0}))
    cost = Run(lambda: None, out, {"seconds": "tuning_seconds"}).finish()
    assert cost.keys() == {"tuning_seconds"} and cost["tuning_seconds"] >= 5
    assert Run(lambda: None, tmp_path / "other").finish() == {}
    assert not (tmp_path / "other").exists()


def side_by_side(chains):
    """A runner of several threads: each takes the next chain when it has ended one."""
    chains = list(chains)

    def end(chain):
        run = next(chain, None)
        while run is not None:
            try:
                cost = run.finish()
            except Exception as error:
                run = next_of(chain.throw, error)
            else:
                run = next_of(chain.send, cost)

    def next_of(tell, what):
        try:
            return tell(what)
        except StopIteration:
            return None

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(end, chains))


def test_another_runner_gives_the_same(tmp_path):
    found = []
    for runner in (None, side_by_side):
        arms = Folder(tmp_path, [], ("b_1/second", ValueError("no")))
        options = {} if runner is None else {"runner": runner}
        engine = Engine((Exception,), **options)
        engine.finish((arms.arm(name), seed) for name in "abc" for seed in (0, 1))
        results = {name: dict(sorted(own.items())) for name, own in engine.results.items()}
        found.append((dict(sorted(results.items())), engine.failures))
    assert found[0] == found[1] and found[0][1].keys() == {"b"}


def test_what_was_measured_is_measured_again_where_something_else_is_asked(tmp_path):
    calls = []

    def measure():
        calls.append(len(calls))
        return {"scores": calls[-1]}

    asked = [{"size": (4, 4)}, {"size": (4, 4)}, {"size": (8, 8)}]
    found = [remembered(tmp_path / "found.json", each, measure)["scores"] for each in asked]
    assert found == [0, 0, 1]


def test_an_arm_is_closed_at_once_by_a_ctrl_c(tmp_path):
    closed = []

    def stop():
        raise KeyboardInterrupt

    def runs(seed):
        try:
            yield Run(stop, tmp_path)
        finally:
            closed.append(seed)

    engine = Engine(catches=(Exception,))
    with pytest.raises(KeyboardInterrupt) as stopped:
        engine.finish_all([Arm("a", runs)], 2)
    assert closed == [0] and engine.failures == {}
    del stopped  # until here it keeps all frames
