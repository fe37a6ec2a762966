import json
import os
import shutil
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import pytest
import torch

from limbeck.engine.checkpoint import is_finished_run, load_checkpoint, open_run, save_checkpoint
from limbeck.errors import RunError, UserError
from tests.engine.fakes import train

CONFIG = {"out": "a", "train": {"epochs": 3.0, "save_every": 500}, "crop": (0.2, 1.0)}
DATA = {"data": "1234"}


def test_a_new_folder_gets_its_config(tmp_path):
    run = open_run(tmp_path / "new" / "run", CONFIG, DATA)
    assert not run.is_finished
    assert json.loads((run.dir / "config.json").read_text())["train"]["epochs"] == 3.0
    assert {file.name for file in run.dir.iterdir()} == {"config.json", "fingerprint.json", ".lock"}


def test_the_same_config_is_continued_and_finished(tmp_path):
    run = open_run(tmp_path, CONFIG, DATA)
    save_checkpoint(run, {"step": 3})
    changed = {**CONFIG, "out": "b", "train": {"epochs": 3.0, "save_every": 7}}
    again = open_run(tmp_path, changed, DATA)
    assert load_checkpoint(again)["step"] == 3
    again.finish()
    assert open_run(tmp_path, CONFIG, DATA).is_finished


def test_overwrite_continues_the_same_run(tmp_path):
    """A command with --overwrite that was killed must go on when it is given again."""
    run = open_run(tmp_path, CONFIG, DATA, overwrite=True)
    save_checkpoint(run, {"step": 3})
    assert load_checkpoint(open_run(tmp_path, CONFIG, DATA, overwrite=True))["step"] == 3


def test_only_just_this_run_is_the_finished_one(tmp_path):
    own = {"seed": 0, "sizes": (4, 4)}, {"data": "abc"}
    assert not is_finished_run(tmp_path / "run", *own)
    run = open_run(tmp_path / "run", *own)
    assert not is_finished_run(run.dir, *own)
    run.finish()
    assert is_finished_run(run.dir, *own)
    assert not is_finished_run(run.dir, own[0] | {"seed": 1}, own[1])
    assert not is_finished_run(run.dir, own[0], {"data": "abd"})


def test_two_processes_never_share_a_run(tmp_path):
    """Until it is finished: a notebook that stays open is no obstacle then."""
    run = open_run(tmp_path, CONFIG, DATA)
    code = (
        "from pathlib import Path; from limbeck.engine.checkpoint import open_run\n"
        "for word in ('working', 'finished'):\n"
        "    input()\n"
        f"    try: print(open_run(Path({str(tmp_path)!r}), {CONFIG!r}, {DATA!r}).is_finished)\n"
        "    except Exception as error: print(error, flush=True)\n"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as other:
        other.stdin.write("\n")
        other.stdin.flush()
        assert "Another process is working on the run" in other.stdout.readline()
        run.finish()
        with pytest.raises(UserError, match="holds another run"):
            open_run(tmp_path, {**CONFIG, "seed": 1}, DATA)
        assert other.communicate("\n")[0] == "True\n"


def test_a_run_without_a_checkpoint_makes_room_for_another(tmp_path):
    """A command that failed at its first step can be corrected and given again."""
    open_run(tmp_path, CONFIG, DATA)
    (tmp_path / "metrics.jsonl").write_text("old")
    run = open_run(tmp_path, {**CONFIG, "seed": 1}, DATA)
    assert run.config["seed"] == 1
    assert not (tmp_path / "metrics.jsonl").exists()


def test_a_chain_has_to_lose_what_its_stages_have_learnt(tmp_path):
    chain = open_run(tmp_path, CONFIG, DATA)
    stage = open_run(tmp_path / "1_vit_tiny", CONFIG, DATA)
    assert open_run(tmp_path, {"seed": 1}, DATA).config == {"seed": 1}
    save_checkpoint(stage, {"step": 1})
    with pytest.raises(UserError, match="seed is 1 there"):
        open_run(tmp_path, chain.config, DATA)
    stage.checkpoint_file.unlink()
    stage.finish()
    with pytest.raises(UserError, match="seed is 1 there"):
        open_run(tmp_path, chain.config, DATA)


def test_another_config_is_refused_by_name(tmp_path):
    save_checkpoint(open_run(tmp_path, CONFIG, DATA), {"step": 3})
    other = {**CONFIG, "train": {"epochs": 5.0}, "seed": 1}
    with pytest.raises(
        UserError,
        match=r"train.epochs is 3.0 there and 5.0 here; seed is absent there and 1 here.*"
        "another --out.*--overwrite",
    ):
        open_run(tmp_path, other, DATA)
    with pytest.raises(UserError, match='fingerprint of data is "1234" there and "9" here'):
        open_run(tmp_path, CONFIG, {"data": "9"})


def test_overwrite_replaces_another_run_and_leaves_foreign_folders(tmp_path):
    run = open_run(tmp_path, CONFIG, DATA)
    save_checkpoint(run, {"step": 3})
    run.finish()
    (tmp_path / "tensorboard").mkdir()
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "mine.txt").write_text("keep")
    new = open_run(tmp_path, {"seed": 1}, DATA, overwrite=True)
    assert load_checkpoint(new) is None
    assert not new.is_finished
    assert {entry.name for entry in tmp_path.iterdir()} == {
        ".lock",
        "config.json",
        "fingerprint.json",
        "notes",
    }
    assert (tmp_path / "notes" / "mine.txt").exists()


@pytest.mark.parametrize("overwrite", [False, True])
def test_a_folder_with_other_things_is_never_touched(tmp_path, overwrite):
    (tmp_path / "thesis.txt").write_text("years of work")
    with pytest.raises(UserError, match="holds no run.*thesis.txt.*another --out"):
        open_run(tmp_path, CONFIG, DATA, overwrite=overwrite)
    assert [entry.name for entry in tmp_path.iterdir()] == ["thesis.txt"]


def test_what_a_crash_leaves_at_the_start_is_swept(tmp_path):
    (tmp_path / ".config.json.partial").write_text("{")
    (tmp_path / "fingerprint.json").write_text("{}")
    open_run(tmp_path, CONFIG, DATA)
    assert not (tmp_path / ".config.json.partial").exists()


def test_an_unwritable_folder_is_said_at_once(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="Can't write in .*file.*Not a directory.*another --out"):
        open_run(tmp_path / "file" / "run", CONFIG, DATA)
    with pytest.raises(UserError, match="Can't write in /proc"):
        open_run(Path("/proc/limbeck"), CONFIG, DATA)


@pytest.mark.skipif(os.geteuid() == 0, reason="root writes everywhere")
def test_a_read_only_folder_is_said_at_once(tmp_path):
    tmp_path.chmod(0o500)
    with pytest.raises(UserError, match="Permission denied"):
        open_run(tmp_path, CONFIG, DATA)


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="no /dev/full here")
@pytest.mark.parametrize("size", [1, 3_000_000])
def test_a_full_disk_keeps_the_last_good_checkpoint(tmp_path, size):
    run = open_run(tmp_path, CONFIG, DATA)
    save_checkpoint(run, {"step": 1})
    # Every write through this name fails as on a full disk.
    (tmp_path / ".checkpoint.pt.partial").symlink_to("/dev/full")
    with pytest.raises(RunError, match="checkpoint.pt: the disk is full.*kept.*same command"):
        save_checkpoint(run, {"step": 2, "weights": torch.zeros(size)})
    assert load_checkpoint(run)["step"] == 1
    assert not list(tmp_path.glob(".*.partial"))


def test_a_limit_in_the_middle_of_a_file_is_said(tmp_path):
    """The disk fills up half-way: PyTorch then raises an error of its own that hides the cause."""
    resource = pytest.importorskip("resource")
    run = open_run(tmp_path, CONFIG, DATA)
    save_checkpoint(run, {"step": 1})
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1_000_000, limits[1]))
    try:
        with pytest.raises(RunError, match="checkpoint.pt: File too large"):
            save_checkpoint(run, {"step": 2, "weights": torch.zeros(3_000_000)})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert load_checkpoint(run)["step"] == 1
    assert not list(tmp_path.glob(".*.partial"))


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="no /dev/full here")
def test_a_run_stops_on_a_full_disk_and_continues_after(tmp_path):
    def probe(module, step):
        if step == 9:
            (tmp_path / ".checkpoint.pt.partial").symlink_to("/dev/full")
        return {}

    with pytest.raises(RunError, match="the disk is full"):
        train(tmp_path, probes=probe)
    assert torch.load(tmp_path / "checkpoint.pt", weights_only=True)["step"] == 5
    _, result = train(tmp_path)
    assert result.step == 12


def test_a_damaged_checkpoint_is_said(tmp_path):
    run = open_run(tmp_path, CONFIG, DATA)
    run.checkpoint_file.write_bytes(b"not a checkpoint")
    with pytest.raises(RunError, match="Can't read .*checkpoint.pt"):
        load_checkpoint(run)
    torch.save({"step": 1}, run.checkpoint_file)
    with pytest.raises(RunError, match="no checkpoint of this version"):
        load_checkpoint(run)


def test_every_flipped_bit_is_found_or_changes_nothing(tmp_path):
    """torch.load does not compare the checksums of its archive; here they are."""
    run = open_run(tmp_path, CONFIG, DATA)
    weights = torch.arange(3000, dtype=torch.float32)
    save_checkpoint(run, {"step": 3, "module": {"weight": weights}})
    whole = run.checkpoint_file.read_bytes()
    refused = 0
    for place in range(0, len(whole), 61):
        content = bytearray(whole)
        content[place] ^= 1 << place % 8
        run.checkpoint_file.write_bytes(content)
        try:
            state = load_checkpoint(run)
        except RunError as error:
            assert "Can't read" in str(error) and "Restore it from a copy" in str(error)
            refused += 1
        else:  # in what fills the archive up
            assert state["step"] == 3 and torch.equal(state["module"]["weight"], weights)
    assert refused > 0.8 * len(whole) / 61


@pytest.mark.parametrize("share", [0, 0.3, 0.99])
def test_a_checkpoint_that_is_cut_short_is_said(tmp_path, share):
    run = open_run(tmp_path, CONFIG, DATA)
    save_checkpoint(run, {"step": 3, "weight": torch.zeros(999)})
    os.truncate(run.checkpoint_file, int(share * run.checkpoint_file.stat().st_size))
    with pytest.raises(RunError, match="damaged, or no checkpoint.*delete it to start afresh"):
        load_checkpoint(run)


def test_another_runs_checkpoint_is_not_taken(tmp_path):
    run, other = open_run(tmp_path / "a", CONFIG, DATA), open_run(tmp_path / "b", {"seed": 1}, {})
    save_checkpoint(other, {"step": 3})
    shutil.copy(other.checkpoint_file, run.checkpoint_file)
    with pytest.raises(RunError, match="checkpoint.pt is another run.s .*there and .* here"):
        load_checkpoint(run)
    os.mkfifo(tmp_path / "pipe")
    run.checkpoint_file.unlink()
    run.checkpoint_file.symlink_to(tmp_path / "pipe")
    with pytest.raises(RunError, match="Can't read .*a named pipe"):
        load_checkpoint(run)


def finished(folder, content=b"weights"):
    run = open_run(folder, CONFIG, DATA, makes=("student.json",))
    save_checkpoint(run, {"step": 3})
    for name in ("student.json", "kept.safetensors"):
        (folder / name).write_bytes(content)
    run.finish("kept.safetensors")
    assert open_run(folder, CONFIG, DATA, makes=("student.json",)).is_finished
    return run


@pytest.mark.parametrize("name", ["student.json", "kept.safetensors", "finished.json"])
def test_a_finished_run_that_lost_something_goes_on_from_its_checkpoint(tmp_path, caplog, name):
    run = finished(tmp_path)
    (tmp_path / name).write_bytes(b"weightz")
    assert not is_finished_run(tmp_path, CONFIG, DATA)
    assert not open_run(tmp_path, CONFIG, DATA, makes=("student.json",)).is_finished
    assert f"was finished, but {name} is damaged: it is made again" in caplog.text
    assert load_checkpoint(run)["step"] == 3
    finished(tmp_path)
    (tmp_path / "student.json").unlink()
    assert not open_run(tmp_path, CONFIG, DATA).is_finished
    assert "student.json can't be read (No such file or directory)" in caplog.text


def test_without_its_checkpoint_the_lost_is_told(tmp_path):
    finished(tmp_path).checkpoint_file.unlink()
    (tmp_path / "student.json").unlink()
    with pytest.raises(UserError, match=r"student.json can't be read .*copy, or train afresh with"):
        open_run(tmp_path, CONFIG, DATA)
    assert not open_run(tmp_path, CONFIG, DATA, overwrite=True).is_finished


def test_a_run_that_an_earlier_version_finished_is_finished(tmp_path):
    finished(tmp_path)
    (tmp_path / "finished.json").write_text("{}\n")
    assert open_run(tmp_path, CONFIG, DATA, makes=("student.json",)).is_finished
    (tmp_path / "student.json").unlink()
    assert not open_run(tmp_path, CONFIG, DATA, makes=("student.json",)).is_finished


@pytest.mark.parametrize("name", ["config.json", "fingerprint.json"])
@pytest.mark.parametrize("content", [b"", b"[]", b"\xff", b'{"a": NaN}', b"[" * 9999, None])
def test_a_damaged_folder_is_said_and_can_be_replaced(tmp_path, name, content):
    save_checkpoint(open_run(tmp_path, CONFIG, DATA), {"step": 3})
    (tmp_path / name).unlink()
    if content is not None:
        (tmp_path / name).write_bytes(content)
    elif name == "config.json":
        return  # then it is no run
    with pytest.raises(UserError, match=f"holds a damaged run: Can't read|{name} holds"):
        open_run(tmp_path, CONFIG, DATA)
    assert load_checkpoint(open_run(tmp_path, CONFIG, DATA, overwrite=True)) is None


@pytest.mark.parametrize("point", range(6))
def test_a_kill_while_a_run_is_replaced_blocks_nothing(tmp_path, monkeypatch, point):
    """After any of the deletions and writings the same command goes on."""
    run = open_run(tmp_path, CONFIG, DATA)
    save_checkpoint(run, {"step": 3})
    run.finish()
    (tmp_path / "1_stage").mkdir()
    left = iter(range(point))

    def dying(work):
        def until(*args, **named):
            if next(left, None) is None:
                raise KeyboardInterrupt
            return work(*args, **named)

        return until

    with monkeypatch.context() as patched, suppress(KeyboardInterrupt):
        patched.setattr(Path, "unlink", dying(Path.unlink))
        patched.setattr(os, "replace", dying(os.replace))
        open_run(tmp_path, {"seed": 1}, DATA, overwrite=True)
    new = open_run(tmp_path, {"seed": 1}, DATA, overwrite=True)
    assert new.config == {"seed": 1} and load_checkpoint(new) is None
    assert (tmp_path / "1_stage").exists()


def test_what_earlier_versions_left_is_swept_and_no_cleared_folder_is_blocked(tmp_path):
    (tmp_path / ".config.json.4711.tmp").write_text("{")
    (tmp_path / ".lock").touch()
    (tmp_path / "1_stage").mkdir()
    open_run(tmp_path, CONFIG, DATA)
    assert not (tmp_path / ".config.json.4711.tmp").exists()
    assert (tmp_path / "1_stage").exists()


def test_a_folder_that_vanishes_is_said(tmp_path):
    run = open_run(tmp_path / "run", CONFIG, DATA)
    shutil.rmtree(run.dir)
    with pytest.raises(RunError, match="its folder has vanished. Put it back.*same command"):
        save_checkpoint(run, {"step": 3})


def test_what_may_change_may_also_in_a_section_of_its_own(tmp_path):
    def config(epochs, every):
        return {"tune": {"train": {"epochs": epochs, "save_every": every}}}

    open_run(tmp_path, config(1, 10), {}).finish()
    assert open_run(tmp_path, config(1, 20), {}).is_finished
    with pytest.raises(UserError, match="tune.train.epochs is 1 there and 2 here"):
        open_run(tmp_path, config(2, 10), {})
