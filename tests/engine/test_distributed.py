"""Ranks, and whole runs in processes of their own: killed, and two together."""

import re
import signal
import socket
import time
from dataclasses import replace
from functools import partial
from runpy import run_path

import pytest
import torch
from torch import nn

from limbeck.engine import distributed as own_distributed
from limbeck.engine.distributed import (
    Ranks,
    SumOverRanks,
    freeze_untrained,
    gather,
    gather_rows,
    num_ranks,
    on_main_rank,
    ranks_session,
    wrap,
)
from limbeck.errors import UserError
from limbeck.ops.ranks import mean_over_ranks
from limbeck.records import Losses
from tests.engine.fakes import (
    TinyModule,
    assert_same_weights,
    fake_batches,
    read_metrics,
    train,
)
from tests.processes import Started, start_ranks


def test_no_more_threads_than_the_process_may_use(monkeypatch):
    monkeypatch.setattr(own_distributed, "num_cores", lambda: 2)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    for before, after in ((8, 2), (1, 1)):
        torch.set_num_threads(before)
        with ranks_session("cpu"):
            assert torch.get_num_threads() == after
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    torch.set_num_threads(3)
    with ranks_session("cpu"):
        assert torch.get_num_threads() == 3


def test_one_process_needs_no_group(monkeypatch):
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    with ranks_session("cpu") as ranks:
        assert ranks == Ranks()
        assert ranks.is_main
    module = nn.Linear(1, 1)
    assert wrap(module, ranks) is module
    assert on_main_rank(lambda: 3) == 3
    assert gather("x") == ["x"]
    assert mean_over_ranks(torch.ones(2)).tolist() == [1, 1]


def test_a_missing_gpu_is_said(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(UserError, match="no CUDA device; use cpu or auto"), ranks_session("cuda"):
        pass
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    with ranks_session("auto") as ranks:
        assert ranks.device.type == "cpu"


def test_an_incomplete_environment_is_said(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.delenv("RANK", raising=False)
    with pytest.raises(UserError, match="RANK.*torchrun"), ranks_session("cpu"):
        pass


def test_freeze_untrained_finds_the_tail_and_leaves_no_trace():
    module = TinyModule(drop_path=0.5, has_tail=True).eval()
    batch = next(fake_batches(4)(0))
    torch.manual_seed(5)
    state = torch.get_rng_state()
    assert freeze_untrained(module, batch) == ["tail.weight", "tail.bias"]
    assert torch.equal(torch.get_rng_state(), state)
    assert not module.training
    assert int(module.num_forwards) == 0
    trainable = {name for name, p in module.named_parameters() if p.requires_grad}
    assert trainable == {
        f"{part}.{kind}" for part in ("stem", "norm", "head") for kind in ("weight", "bias")
    }
    assert all(parameter.grad is None for parameter in module.parameters())
    assert freeze_untrained(module, batch) == []


class Packed(nn.Module):
    """Three thirds in one matrix: the second is never read, the third by one mode alone."""

    def __init__(self):
        super().__init__()
        self.both, self.none = nn.Linear(12, 6), nn.Linear(12, 6)

    def forward(self, batch):
        x = batch.images.flatten(1)
        first, _, third = self.both(x).chunk(3, dim=1)
        total = first.sum() + third.sum() * (not self.training)
        return Losses(total + 0 * self.none(x).sum())


def test_freeze_untrained_names_parts_whose_gradient_is_zero():
    def thirds(name, value):
        return {f"{name}[{i}]": part for i, part in enumerate(value.chunk(3))}

    module, batch = Packed(), next(fake_batches(4)(0))
    # Of a layer that as a whole has no gradient (yet) nothing is said.
    assert freeze_untrained(module, batch, thirds) == ["both.weight[1]", "both.bias[1]"]
    assert all(parameter.requires_grad for parameter in module.parameters())


def test_kill_9_and_again_ends_the_same(tmp_path):
    """Killed at a moment that nobody chose, a run ends as if it had never been."""
    settings = {
        "total_steps": 60,
        "drop_path": 0.5,
        "optim": {"clip_grad": 0.3},
        "options": {"precision": "bf16", "ema_decay": 0.9, "save_every": 2},
    }
    slow = partial(train, **settings, step_seconds=0.02)
    started = Started(slow, tmp_path / "killed", folder=tmp_path)
    file = tmp_path / "killed" / "metrics.jsonl"
    while not (file.exists() and file.read_text().count("\n") > 3):
        assert started.process.exitcode is None, started.stderr.read_text()
        time.sleep(0.003)
    started.process.kill()
    assert started.end().returncode == -signal.SIGKILL
    done = torch.load(tmp_path / "killed" / "checkpoint.pt", weights_only=True)["step"]
    assert 0 < done < 60
    killed, _ = train(tmp_path / "killed", **settings)
    whole, _ = train(tmp_path / "whole", **settings)
    assert_same_weights(whole, killed, rtol=0, atol=0)
    assert read_metrics(tmp_path / "whole") == read_metrics(tmp_path / "killed")
    assert not list((tmp_path / "killed").glob(".*.partial"))


def test_two_processes_equal_one_and_one_takes_over_from_two(tmp_path):
    settings = {"options": {"accumulate_steps": 2, "ema_decay": 0.9}, "optim": {"clip_grad": 0.3}}
    poisoned = partial(train, **settings, bad_step=10)
    pair = start_ranks(poisoned, tmp_path / "two", folder=tmp_path, count=2)
    whole, _ = train(tmp_path / "one", **settings)
    errors = [started.end().stderr for started in pair]
    # Both ranks stop at the poisoned step, though only one of them was given the bad sample.
    assert all("Step 11 is not finite" in error for error in errors), errors
    assert "samples 10/0, 10/1 (all in" in errors[1]
    assert torch.load(tmp_path / "two" / "checkpoint.pt", weights_only=True)["step"] == 10
    both, _ = train(tmp_path / "two", **settings)
    for model in (whole, both):
        model.num_forwards.zero_()
    assert_same_weights(whole, both, rtol=1e-4, atol=1e-5)  # sums in another order
    one, two = read_metrics(tmp_path / "one"), read_metrics(tmp_path / "two")
    for record, other in zip(one, two, strict=True):
        assert record["step"] == other["step"]
        for group in ("losses", "probe"):
            assert record.get(group, {}) == pytest.approx(other.get(group, {}), rel=1e-4)


def test_alone_there_is_nothing_to_gather_or_to_add():
    rows = torch.randn(3, 2, requires_grad=True)
    gathered, first = gather_rows(rows)
    assert torch.equal(gathered, rows) and first == 0 and not gathered.requires_grad
    SumOverRanks.apply(rows).sum().backward()
    assert torch.equal(rows.grad, torch.ones(3, 2))
    assert num_ranks() == 1


TWO_RANKS = """
import torch
from limbeck.engine.distributed import SumOverRanks, gather_rows, num_ranks, ranks_session

with ranks_session("cpu") as ranks:
    assert num_ranks() == 2
    rows = torch.full((2, 3), float(ranks.rank), requires_grad=True)
    gathered, first = gather_rows(rows)
    assert gathered[:, 0].tolist() == [0, 0, 1, 1] and first == 2 * ranks.rank
    total = SumOverRanks.apply(rows)
    assert total.tolist() == [[1.0] * 3] * 2
    # The loss of rank r is (r + 1) times the sum; every rank's losses feel every value.
    ((ranks.rank + 1) * total).sum().backward()
    assert rows.grad.tolist() == [[3.0] * 3] * 2
"""


def test_two_ranks_gather_and_add_with_gradients(tmp_path):
    (tmp_path / "two.py").write_text(TWO_RANKS)
    pair = start_ranks(run_path, str(tmp_path / "two.py"), folder=tmp_path, count=2)
    done = [started.end() for started in pair]
    assert [each.returncode for each in done] == [0, 0], done


MEETING = """
import os
from limbeck.engine.distributed import check_ranks, ranks_session, told_by_one
from limbeck.errors import OfRank, UserError

rank = int(os.environ["RANK"])
try:
    if {before}:
        raise UserError("bad before")
    with ranks_session("cpu", {config}) as ranks:
        check_ranks({values})
        if {within}:
            raise UserError("bad within")
        check_ranks({{}})
except (UserError, OfRank) as error:
    told = error if isinstance(error, OfRank) else told_by_one(error)
    print("speaks" if told.speaks else "silent", told.exit_code, told)
"""


@pytest.mark.parametrize(
    ("parts", "expected"),
    [
        (
            {"config": "{'seed': rank, 'overwrite': rank}"},
            ["speaks 2 Rank 1 is not .*: seed is 1 there and 0 on rank 0", "silent 2"],
        ),
        (
            {"values": "{'images': {'count': 5 + rank}}"},
            ["speaks 2 Rank 1 is not .*: images.count is 6 there and 5 on rank 0", "silent 2"],
        ),
        ({"within": "rank == 1"}, ["silent 1 Another process", "speaks 2 bad within"]),
        ({"within": "True"}, ["speaks 2 bad within", "silent 2"]),
        ({"before": "rank == 1"}, ["silent 1 Another process", "speaks 2 bad before"]),
    ],
)  # fmt: skip
def test_one_rank_tells_what_keeps_the_run_from_its_work(tmp_path, parts, expected):
    given = {"before": "False", "config": "{}", "values": "{}", "within": "False"} | parts
    (tmp_path / "meeting.py").write_text(MEETING.format(**given))
    pair = start_ranks(run_path, str(tmp_path / "meeting.py"), folder=tmp_path, count=2)
    for started, words in zip(pair, expected, strict=True):
        assert re.match(words, started.end().stdout)


def test_a_rank_that_is_killed_ends_the_other_with_a_sentence(tmp_path):
    slow = partial(train, total_steps=10_000, step_seconds=0.02)
    main, other = start_ranks(slow, tmp_path / "run", folder=tmp_path, count=2)
    file = tmp_path / "run" / "metrics.jsonl"
    while not (file.exists() and file.read_text().count("\n") > 1):
        assert main.process.exitcode is None, main.stderr.read_text()
        time.sleep(0.01)
    other.process.kill()
    other.end()
    done = main.end()
    assert done.returncode == 1
    assert "OfRank: Another process of this run is gone" in done.stderr
    assert "it goes on from the last checkpoint" in done.stderr


def test_a_port_in_use_is_said(monkeypatch):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        names = {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "2", "MASTER_PORT": port}
        for name, value in (names | {"MASTER_ADDR": "127.0.0.1"}).items():
            monkeypatch.setenv(name, value)
        with pytest.raises(UserError, match=f"{port}.* is in use"), ranks_session("cpu"):
            pass
    monkeypatch.delenv("MASTER_ADDR")
    with pytest.raises(UserError, match="MASTER_ADDR.*torchrun"), ranks_session("cpu"):
        pass
    monkeypatch.setenv("RANK", "2")
    with pytest.raises(UserError, match="RANK 2.*WORLD_SIZE 2 don't fit"), ranks_session("cpu"):
        pass


class TwoViews(nn.Module):
    """Says how many images it has seen of each kind."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(12, 1)
        self.seen = []

    def forward(self, batch):
        self.seen.append((len(batch.images), len(batch.local_images), len(batch.keys)))
        return Losses(self.layer(batch.images.flatten(1)).sum())


def test_freeze_untrained_shows_all_views_of_two_samples():
    batch = next(fake_batches(8)(0))
    local_images = torch.rand(12, 3, 1, 1)
    batch = replace(batch, keys=batch.keys[:4], local_images=local_images)
    module = TwoViews()
    assert freeze_untrained(module, batch) == []
    assert set(module.seen) == {(4, 6, 2)}
