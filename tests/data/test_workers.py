"""Loader processes, and what becomes of them on machines that are short of something."""

import multiprocessing
import os
import pickle
import shutil
import signal
import subprocess
import sys
import tempfile

import pytest
import torch

from limbeck.data import workers
from limbeck.data.workers import _ByValue, lost_workers_explained, run_workers
from limbeck.errors import RunError
from tests.data.images import write_photos


def test_a_worker_killed_between_two_batches_is_explained_too():
    with pytest.raises(RunError, match="loader process died"), lost_workers_explained():
        raise RuntimeError("DataLoader worker (pid 7) is killed by signal: Killed.")
    with pytest.raises(RuntimeError, match="another"), lost_workers_explained():
        raise RuntimeError("another error")


ENDLESS = """
import signal, sys, time, torch
from limbeck.data.workers import run_workers

# A shell that starts the tests in the background lets them ignore Ctrl-C.
signal.signal(signal.SIGINT, signal.default_int_handler)

class Endless(torch.utils.data.Dataset):
    def __getitem__(self, request):
        return request

stream = run_workers(Endless(), iter(range(10**9)), num_workers=2)
is_held_to_the_end = [stream]
is_held_to_the_end.append(is_held_to_the_end)
try:
    for number in stream:
        if number == 1:
            print("ready", flush=True)
            time.sleep(600)
except KeyboardInterrupt:
    sys.exit(7)
"""


def test_ctrl_c_ends_quietly():
    """The whole process group gets SIGINT; only the main process answers, and nothing hangs."""
    with subprocess.Popen(
        [sys.executable, "-c", ENDLESS],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    ) as process:
        assert process.stdout.readline() == "ready\n"
        os.killpg(process.pid, signal.SIGINT)
        try:
            _, errors = process.communicate(timeout=300)
        finally:
            process.kill()  # where it hangs, nothing would end it
    assert process.returncode == 7
    assert "Traceback" not in errors


class _Doubles(torch.utils.data.Dataset):
    def __getitem__(self, request):
        return 2 * request, torch.get_num_threads()


@pytest.mark.parametrize("num_workers", [0, 2])
def test_run_workers_keeps_the_order(num_workers):
    torch.set_num_threads(2)
    found = list(run_workers(_Doubles(), iter(range(20)), num_workers))
    assert [value for value, _ in found] == [2 * i for i in range(20)]
    if num_workers:
        assert {threads for _, threads in found} == {1}


class Full(torch.utils.data.Dataset):
    """Whole tensors, which go by shared memory."""

    def __getitem__(self, request):
        return torch.full((4,), request), str(request)


def numbers(dataset, num_workers=2, count=12):
    return [int(values[0]) for values, _ in run_workers(dataset, range(count), num_workers)]


@pytest.fixture
def _nothing_said(monkeypatch):
    monkeypatch.setattr(workers, "_told", [])


class NoSharedMemory(Full):
    """As in a container with a full /dev/shm: each attempt to share a tensor fails."""

    def __getitem__(self, request):
        def refuse(*arguments):
            raise RuntimeError("unable to allocate shared memory: No space left on device (28)")

        torch.UntypedStorage._share_fd_cpu_ = refuse
        return super().__getitem__(request)


@pytest.mark.usefixtures("_nothing_said")
def test_without_shared_memory_batches_come_through_a_pipe(caplog):
    assert numbers(NoSharedMemory()) == list(range(12))
    assert "No space left on device" in caplog.text and "--shm-size" in caplog.text
    assert len(caplog.records) == 2  # once, with the remedy


@pytest.mark.usefixtures("_nothing_said")
def test_a_folder_of_temporary_files_that_is_gone(tmp_path, monkeypatch, caplog):
    """Sockets between the processes lie there."""
    (tmp_path / "gone").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "gone"))
    monkeypatch.delitem(multiprocessing.current_process()._config, "tempdir", raising=False)
    shutil.rmtree(tmp_path / "gone")
    assert numbers(Full()) == list(range(12))
    assert "TMPDIR" in caplog.text


def test_a_batch_by_value_unpickles_as_itself():
    batch = (torch.arange(3), "name", None)
    values, name, nothing = pickle.loads(pickle.dumps(_ByValue(pickle.dumps(batch), "full")))
    assert torch.equal(values, torch.arange(3)) and (name, nothing) == ("name", None)


class Unsendable(torch.utils.data.Dataset):
    def __getitem__(self, request):
        return lambda: request


def test_what_can_not_be_sent_at_all_is_a_death_and_no_hang():
    with pytest.raises(RunError, match="loader process died"):
        list(run_workers(Unsendable(), range(4), 1))


@pytest.mark.parametrize("part", ["Queue", "Process"])
def test_where_no_process_can_be_started_this_one_works(monkeypatch, caplog, part):
    def refuse(*arguments, **named):
        raise OSError(28, "No space left on device")

    if part == "Queue":
        monkeypatch.setattr(torch.multiprocessing, "Queue", refuse)
    else:
        starts = iter([True, False])
        start = multiprocessing.Process.start
        monkeypatch.setattr(
            multiprocessing.Process,
            "start",
            lambda process: start(process) if next(starts) else refuse(),
        )
    assert numbers(Full()) == list(range(12))
    assert "No loader process can be started" in caplog.text
    for process in multiprocessing.active_children():
        process.join(timeout=300)
    assert multiprocessing.active_children() == []


class Gone(torch.utils.data.Dataset):
    def __getitem__(self, request):
        raise RunError("The store is gone.")


@pytest.mark.parametrize("num_workers", [0, 1])
def test_a_worker_s_clear_error_stays_one_sentence(num_workers):
    with pytest.raises(RunError) as caught:
        list(run_workers(Gone(), range(3), num_workers))
    assert str(caught.value) == "The store is gone." and type(caught.value) is RunError


def test_what_can_not_be_received_is_explained(monkeypatch):
    def vanished(self):
        raise FileNotFoundError(2, "No such file or directory")

    monkeypatch.setattr(workers._MultiProcessingDataLoaderIter, "_next_data", vanished)
    with pytest.raises(RunError, match="can't be received.*TMPDIR.*continues"):
        list(run_workers(Full(), range(3), 1))


SPAWNED = """
import sys
from multiprocessing import set_start_method
from pathlib import Path
from limbeck.data.folder import FolderSource
from limbeck.data.loader import train_batches
from limbeck.data.options import DataOptions, ViewOptions
from limbeck.data.skipped import SkippedLog
import torch

if __name__ == "__main__":
    set_start_method("spawn")
    source = FolderSource(Path(sys.argv[1]))
    found = [
        [
            batch.images
            for batch in train_batches(
                source, data=DataOptions(num_workers=number), views=ViewOptions(), img_size=16,
                run_seed=5, global_batch_size=4, accumulate_steps=1, rank=0, world_size=1,
                start_step=0, total_steps=3, device=torch.device("cpu"), erase_mean=(0, 0, 0),
                erase_std=(1, 1, 1), skipped=SkippedLog(None, len(source), 0.0),
            )
        ]
        for number in (0, 1)
    ]
    assert all(torch.equal(*pair) for pair in zip(*found, strict=True))
    print(len(found[1]))
"""


@pytest.mark.slow
def test_workers_may_be_spawned(tmp_path):
    """As on Windows and macOS: everything is sent, nothing inherited."""
    write_photos(tmp_path / "photos", [f"{name}/{i}.jpg" for name in "ab" for i in range(3)])
    (tmp_path / "main.py").write_text(SPAWNED)
    words = [sys.executable, str(tmp_path / "main.py"), str(tmp_path / "photos")]
    done = subprocess.run(words, capture_output=True, text=True)
    assert done.stdout == "3\n", done.stderr
