import json
import logging
import multiprocessing

import pytest

from limbeck.data.skipped import SkippedLog
from limbeck.errors import RunError


def lines(file):
    return [json.loads(line) for line in file.read_text().splitlines() if line]


def test_each_image_is_listed_once(tmp_path, caplog):
    file = tmp_path / "run" / "skipped.jsonl"
    log = SkippedLog(file, num_images=100, max_bad_ratio=0.1)
    with caplog.at_level(logging.WARNING, logger="limbeck"):
        log.add([("a.jpg", "it is empty"), ("b.jpg", "no image")])
        log.add([("a.jpg", "it is empty")])
    assert lines(file) == [
        {"key": "a.jpg", "reason": "it is empty"},
        {"key": "b.jpg", "reason": "no image"},
    ]
    assert len(caplog.records) == 2 and "a.jpg: it is empty" in caplog.text


def test_nothing_is_written_while_nothing_is_bad(tmp_path):
    SkippedLog(tmp_path / "skipped.jsonl", 10, 0.0).add([])
    assert not (tmp_path / "skipped.jsonl").exists()


def test_a_resumed_run_reads_the_list(tmp_path):
    file = tmp_path / "skipped.jsonl"
    SkippedLog(file, 100, 0.02).add([("a", "x"), ("b", "y")])
    resumed = SkippedLog(file, 100, 0.02)
    assert resumed.reasons == {"a": "x", "b": "y"}
    resumed.add([("a", "x")])
    with pytest.raises(RunError):
        resumed.add([("c", "z")])


def test_too_many_bad_images_stop_the_run_with_the_list(tmp_path):
    log = SkippedLog(tmp_path / "skipped.jsonl", 100, 0.01)
    log.add([("a", "x")])
    with pytest.raises(
        RunError, match=r"2 of 100 .* 0\.01 .*a \(x\), b \(y\).*skipped\.jsonl.*`limbeck doctor`"
    ):
        log.add([("b", "y")])
    assert len(lines(tmp_path / "skipped.jsonl")) == 2


def test_other_ranks_count(tmp_path):
    file = tmp_path / "skipped.jsonl"
    ranks = [SkippedLog(file, 100, 0.01) for _ in range(2)]
    ranks[0].add([("a", "x")])
    with pytest.raises(RunError, match="2 of 100"):
        ranks[1].add([("b", "y")])


def test_a_torn_last_line_is_repaired(tmp_path):
    file = tmp_path / "skipped.jsonl"
    file.write_text('{"key": "a", "reason": "x"}\n{"key": "b", "rea')
    log = SkippedLog(file, 100, 1.0)
    assert log.reasons == {"a": "x"}
    log.add([("b", "y")])
    assert SkippedLog(file, 100, 1.0).reasons == {"a": "x", "b": "y"}


def test_other_lines_are_passed_over(tmp_path):
    file = tmp_path / "skipped.jsonl"
    good = b'{"key": "a", "reason": "x"}\n'
    file.write_bytes(
        b'{"key": 1, "reason": "x"}\n[]\n\xff\n{"key": "b", "reason": {}}\n'
        + b"[" * 100_000 + b"\n" + good
    )  # fmt: skip
    assert SkippedLog(file, 100, 1.0).reasons == {"a": "x"}
    file.unlink()
    file.mkdir()
    with pytest.raises(RunError, match="Can't read .*it is a folder"):
        SkippedLog(file, 100, 1.0)


def _add_many(file, rank):
    log = SkippedLog(file, 1000, 1.0)
    for number in range(50):
        log.add([(f"{rank}-{number}", "x" * 50)])


def test_several_processes_append(tmp_path):
    file = tmp_path / "skipped.jsonl"
    context = multiprocessing.get_context("fork")
    processes = [context.Process(target=_add_many, args=(file, rank)) for rank in range(3)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    assert {entry["key"] for entry in lines(file)} == {
        f"{rank}-{number}" for rank in range(3) for number in range(50)
    }


@pytest.mark.parametrize("name", ["a\n\udcff\u2028.jpg", "\u2028\x85\x1c\r.jpg", "ä.jpg"])
def test_odd_file_names_survive(tmp_path, name):
    file = tmp_path / "skipped.jsonl"
    SkippedLog(file, 10, 1.0).add([(name, "x")])
    assert SkippedLog(file, 10, 1.0).reasons == {name: "x"}


def test_unwritable_list_is_said(tmp_path):
    (tmp_path / "taken").write_text("")
    log = SkippedLog(tmp_path / "taken" / "skipped.jsonl", 10, 1.0)
    with pytest.raises(RunError, match="Can't write"):
        log.add([("a", "x")])


def test_without_a_file_the_list_is_kept_in_memory():
    log = SkippedLog(None, 10, 0.1)
    log.add([("a", "x")])
    assert log.reasons == {"a": "x"}
