"""The work of storing: what is loaded at once, what it will cost, what it leaves behind."""

import os
import signal

import numpy as np
import pytest
import torch

from limbeck.data.open import open_source
from limbeck.data.options import DataOptions, StoreOptions, ViewOptions
from limbeck.data.skipped import SkippedLog
from limbeck.data.target_store import ArraySpec, Manifest
from limbeck.data.target_store.reader import MISSING, SKIPPED, TargetReader
from limbeck.data.target_store.writer import open_writer
from limbeck.engine.distributed import Ranks
from limbeck.engine.loop import Interrupted
from limbeck.errors import RunError
from limbeck.methods.options import SparseLogitOptions
from limbeck.methods.sparse_logit import SparseLogit
from limbeck.methods.targets import plan_targets
from limbeck.methods.teacher import Teacher
from limbeck.ops.label_codes import LabelCodec
from limbeck.recipes.run.lineage import versions
from limbeck.recipes.targets.reading import view_recipe
from limbeck.recipes.targets.storing import Forecast, Job, stop_explained
from tests.fakes import FakeEncoder
from tests.recipes.runs import draw_unlabelled

VIEWS = ViewOptions(scale=(0.5, 1.0))
NUM_VIEWS = 3


@pytest.fixture
def folder(tmp_path):
    folder = draw_unlabelled(tmp_path / "photos", count=7)
    (folder / "bad.png").write_bytes(b"no image")
    return folder


def job_of(folder, out, *, batch_size=4, rank=0, world_size=1, num_parts=4):
    source = open_source(str(folder), DataOptions(), "")
    torch.manual_seed(0)  # of the teacher's classifier
    student, teacher = FakeEncoder(), Teacher(FakeEncoder(seed=1), torch.device("cpu"), "fp32")
    method = SparseLogit(SparseLogitOptions(), student.facts, teacher.facts)
    targets = plan_targets(StoreOptions(top_k=2), method, teacher)
    manifest = Manifest(
        kind=targets.kind,
        params=targets.params,
        arrays=targets.arrays,
        teacher={"facts": {}, "precision": "fp32"},
        recipe=view_recipe(VIEWS, student.facts, 0),
        num_views=NUM_VIEWS,
        num_parts=num_parts,
        data={},
        versions=versions(),
    )
    return Job(
        source=source,
        data=DataOptions(num_workers=0),
        batch_size=batch_size,
        views=VIEWS,
        student=student.facts,
        method=method,
        teacher=teacher,
        targets=targets,
        writer=open_writer(str(out), manifest, targets.weights),
        ranks=Ranks(rank=rank, world_size=world_size),
        skipped=SkippedLog(None, len(source), 1.0),
    )


@pytest.mark.parametrize("batch_size", [1, 2, 3, 7, 100])
def test_requests_cover_each_view_once_and_no_more_at_a_time(folder, tmp_path, batch_size):
    job = job_of(folder, tmp_path / "store", batch_size=batch_size)
    requests = list(job.requests(np.arange(5)))
    seen = [(index, view) for views, indices in requests for index in indices for view in views]
    assert sorted(seen) == [(index, view) for index in range(5) for view in range(NUM_VIEWS)]
    sizes = [len(views) * len(indices) for views, indices in requests]
    assert max(sizes) <= batch_size
    if batch_size >= NUM_VIEWS:  # an image is then decoded once
        assert all(len(views) == NUM_VIEWS for views, _ in requests)


def records_of(out, keys):
    reader = TargetReader(str(out))
    rows = reader.locate(keys)
    found = [reader.read(rows[rows >= 0], view)["records"] for view in range(NUM_VIEWS)]
    return rows, np.stack(found)


def test_whatever_the_batch_and_the_parts_the_records_are_the_same(folder, tmp_path):
    keys = [f"{index:03d}.png" for index in range(7)]
    stored = []
    for number, (batch_size, num_parts) in enumerate([(1, 1), (5, 4), (100, 8)]):
        out = tmp_path / f"store{number}"
        job = job_of(folder, out, batch_size=batch_size, num_parts=num_parts)
        assert job.write(job.left()) == 7
        rows, records = records_of(out, [*keys, "bad.png", "other.png"])
        assert rows[7:].tolist() == [SKIPPED, MISSING] and (rows[:7] >= 0).all()
        assert job.left() == {}
        stored.append(LabelCodec(2, 3).decode(torch.from_numpy(records).flatten(0, 1)))
    for other in stored[1:]:  # the same up to the order of summation in a batch
        assert torch.equal(other.classes, stored[0].classes)
        torch.testing.assert_close(other.probs, stored[0].probs, rtol=1e-3, atol=0)
    assert len(stored[0].probs[:, 0].unique()) > 2 * 7  # views differ


def test_ranks_write_their_own_parts(folder, tmp_path):
    out = tmp_path / "store"
    both = [job_of(folder, out, rank=rank, world_size=2) for rank in (0, 1)]
    left = both[0].left()
    assert sum(job.write(left) for job in both) == 7
    assert both[1].left() == {}


def test_what_could_not_be_read_is_tried_again_when_asked(folder, tmp_path):
    out = tmp_path / "store"
    job = job_of(folder, out)
    job.write(job.left())
    (folder / "bad.png").write_bytes((folder / "000.png").read_bytes())
    assert job_of(folder, out).left() == {}
    again = job_of(folder, out)
    left = again.left(tries_skipped=True)
    assert again.write(left) == 1
    rows, records = records_of(out, ["bad.png"])
    assert (rows >= 0).all() and records.shape[1] == 1


def test_too_many_bad_images_end_it(folder, tmp_path):

    job = job_of(folder, tmp_path / "store")
    job.skipped = SkippedLog(None, 8, 0.0)
    with pytest.raises(RunError, match="bad.png"):
        job.write(job.left())


def test_a_forecast_is_of_what_is_left(folder, tmp_path):
    job = job_of(folder, tmp_path / "store")
    forecast = job.forecast(job.left())
    assert forecast.num_views == 8 * NUM_VIEWS
    assert forecast.num_bytes == 8 * (NUM_VIEWS * job.writer.manifest.bytes_per_record + 8)
    assert forecast.seconds > 0 and forecast.epochs >= NUM_VIEWS
    half = job_of(folder, tmp_path / "store", world_size=2).forecast(job.left())
    assert half.num_bytes == forecast.num_bytes


def test_a_forecast_in_words():
    said = Forecast(num_views=60_000, num_bytes=2**21, seconds=600.0, epochs=1.3).sentence()
    assert said == (
        "60,000 views to store: about 2.0 MiB and 10.0 minutes; it pays back after 1.3 epochs of "
        "training, of one student or of several."
    )
    assert "2.0 hours" in Forecast(1, 1, 7200.0, 1.0).sentence()
    assert ArraySpec((2,), "uint8").num_bytes == 2


@pytest.mark.parametrize("comes_again", [False, True])
def test_a_store_that_goes_while_it_is_written_is_no_success(
    folder, tmp_path, monkeypatch, comes_again
):
    out, answer = tmp_path / "store", Job._answer
    job = job_of(folder, out, batch_size=100)

    def vanishing(self, batch):
        if (out / "part-00000.json").exists():
            out.rename(tmp_path / "moved")
            if comes_again:
                out.mkdir()
        return answer(self, batch)

    monkeypatch.setattr(Job, "_answer", vanishing)
    said = "has lost manifest.json .*while it was written" if comes_again else "folder is gone"
    with pytest.raises(RunError, match=said):
        job.write(job.left())


@pytest.fixture
def _heeds_ctrl_c():
    """As in a terminal: a run in the background may have been born deaf to it."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("_heeds_ctrl_c")
@pytest.mark.parametrize(
    ("number", "name"), [(signal.SIGINT, "Ctrl-C"), (signal.SIGTERM, "SIGTERM")]
)
def test_stopped_at_once_with_what_is_finished(folder, tmp_path, monkeypatch, number, name):
    out, before = tmp_path / "store", signal.getsignal(signal.SIGTERM)
    job, answer = job_of(folder, out, batch_size=3), Job._answer
    with monkeypatch.context() as patch:
        # While the teacher answers, when one part is finished.
        def stopping(self, batch):
            if list(out.glob("part-*.json")):
                os.kill(os.getpid(), number)
            return answer(self, batch)

        patch.setattr(Job, "_answer", stopping)
        said = f"Stopped by {name}; finished parts of the store are kept"
        with pytest.raises(Interrupted, match=said) as stopped, stop_explained():
            job.write(job.left())
    assert stopped.value.exit_code == 128 + number
    assert signal.getsignal(signal.SIGTERM) == before
    finished = {file.name: file.read_bytes() for file in out.glob("part-*")}
    assert 0 < len(finished) < 8
    again = job_of(folder, out)
    again.write(again.left())
    assert {name: (out / name).read_bytes() for name in finished} == finished
    assert (records_of(out, ["000.png"])[0] >= 0).all()
