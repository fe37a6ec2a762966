import os
import re
import shutil

import numpy as np
import pytest
import torch

from limbeck.data.released_logits import Records, ReleasedLogits, soft_labels
from limbeck.errors import UserError
from tests.data.released import write_rank, write_released

KEYS = [f"n{number:03d}_7" for number in range(10)]


@pytest.fixture
def root(tmp_path):
    write_released(tmp_path, KEYS, num_epochs=3, num_classes=20, num_kept=4, ranks=2)
    return tmp_path


def change(root, field, row, value, epoch=1, rank=0):
    """One value of a record in the file; ``field`` is the offset of its first byte and its type."""
    file = root / f"logits_top4_epoch{epoch}" / f"rank{rank}-values.bin"
    data = bytearray(file.read_bytes())
    offset, kind = field
    new = np.asarray(value, kind).tobytes()
    data[row * 20 + offset : row * 20 + offset + len(new)] = new
    file.write_bytes(data)


SEED, ID, PROB = (0, "<i4"), (4, "<i2"), (12, "<f2")


def test_a_record_is_the_published_one_byte_by_byte(tmp_path):
    folder = tmp_path / "logits_top3_epoch0"
    classes, probs = np.array([[7, 2, 5]]), np.array([[0.7, 0.2, 0.05]])
    write_rank(folder, 0, ["a"], np.array([12345]), classes, probs)
    raw = (folder / "rank0-values.bin").read_bytes()
    assert raw.hex(" ") == "39 30 00 00 07 00 02 00 05 00 9a 39 66 32 66 2a"
    released = ReleasedLogits(tmp_path, num_classes=10)
    assert released.keys(0) == {"a": 0} and released.num_views == 1 and released.num_kept == 3
    records = released.read(0, np.array([0]))
    assert records.view_seeds.tolist() == [12345] and records.classes.tolist() == [[7, 2, 5]]
    assert records.probs.astype(float).tolist() == [
        [0.7001953125, 0.199951171875, 0.04998779296875]
    ]
    stored = records.probs.astype(np.float64)
    labels = soft_labels(records, 10)
    assert labels.classes.tolist() == [[7, 2, 5]] and labels.num_classes == 10
    assert labels.probs.tolist() == stored.tolist()
    each = labels.rest.item() / 7
    assert each == pytest.approx(0.0071236746652, abs=1e-9)  # one rounding to float32
    # The published loss is of logits and soft labels in float32.
    logits = (torch.arange(10) / 10).double()
    assert logits.logsumexp(0).item() == pytest.approx(2.7934933167340, abs=5e-14)
    dense = torch.full((10,), each, dtype=torch.float64)
    dense[labels.classes[0]] = labels.probs[0].double()
    loss = -(dense * logits.log_softmax(0)).sum().item()
    assert loss == pytest.approx(2.2162890843854, abs=2e-9)
    dense = torch.full((10,), (1 - stored.sum()) / 7, dtype=torch.float64)
    dense[labels.classes[0]] = torch.from_numpy(stored[0])
    assert -(dense * logits.log_softmax(0)).sum().item() == pytest.approx(loss, abs=2e-9)


def test_records_are_found_by_key_in_any_epoch_and_process(root):
    released = ReleasedLogits(root, 20)
    assert (released.num_views, released.num_kept) == (3, 4)
    for epoch in range(3):
        rng = np.random.default_rng(epoch)
        rng.permutation(10)
        dense = rng.dirichlet(np.full(20, 0.3), 10)
        seeds = rng.integers(0, 2**31, 10)
        places = released.keys(epoch)
        assert set(places) == set(KEYS) and sorted(places.values()) == list(range(10))
        wanted = [8, 3, 3, 0]
        records = released.read(epoch, np.array([places[KEYS[row]] for row in wanted]))
        assert records.view_seeds.tolist() == seeds[wanted].tolist()
        assert records.classes[:, 0].tolist() == dense[wanted].argmax(1).tolist()
        assert np.abs(records.probs[:, 0] - dense[wanted].max(1)).max() < 2.5e-4  # float16
        assert len(released.read(epoch, np.array([], np.int64)).probs) == 0


def test_the_rest_is_never_below_zero():
    probs = np.array([[0.9, 0.1001], [0.5, 0.25], [1.0, 0.0]], np.float16)
    records = Records(np.zeros(3, "<i4"), np.array([[3, 1], [0, 2], [1, 0]], "<i2"), probs)
    labels = soft_labels(records, 4)
    assert labels.rest.tolist() == [0, 0.25, 0]
    torch.testing.assert_close(labels.probs.sum(1) + labels.rest, torch.ones(3), atol=1e-7, rtol=0)
    assert labels.probs[1].tolist() == [0.5, 0.25]
    assert labels.probs.dtype == torch.float32 and labels.classes.dtype == torch.int64


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        (SEED, -1, "a negative view seed"),
        (ID, -2, "a negative class id"),
        (ID, 20, "a class id of 20 or above"),
        (PROB, np.nan, "not finite"),
        (PROB, np.inf, "not finite"),
        (PROB, 0.0, "do not fall"),
        (PROB, 9.5, "outside 0..1"),
        ((18, "<f2"), -0.5, "outside 0..1"),
    ],
)
def test_a_damaged_record_is_told(root, field, value, message):
    change(root, field, 2, value)
    released = ReleasedLogits(root, 20)
    released.read(1, np.array([0, 1, 3]))
    with pytest.raises(
        UserError, match=rf"epoch1: the record in place 2 has .*{message}.*--classes 20"
    ):
        released.read(1, np.arange(10))


def test_one_class_twice_is_told(root):
    change(root, ID, 0, [3, 3])
    with pytest.raises(UserError, match="has one class twice"):
        ReleasedLogits(root, 20).read(1, np.arange(2))


def lose_half(root):
    (root / "logits_top4_epoch2" / "rank1-values.bin").unlink()


def lose_rank(root):
    for name in ("keys.txt", "values.bin"):
        (root / "logits_top4_epoch2" / f"rank0-{name}").unlink()


def lose_files(root):
    for file in (root / "logits_top4_epoch0").iterdir():
        file.unlink()


def lose_epoch(root):
    shutil.rmtree(root / "logits_top4_epoch1")


def add_other_k(root):
    write_released(root / "more", KEYS, num_epochs=1, num_classes=20, num_kept=5)
    (root / "more" / "logits_top5_epoch0").rename(root / "logits_top5_epoch7")


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lose_half, "epoch2 has files of rank 1, but no rank1-values.bin; copy"),
        (lose_rank, "but no rank0-keys.txt and no rank0-values.bin"),
        (lose_files, "epoch0 has no rank0-keys.txt"),
        (lose_epoch, "epochs up to 2, but not 1; add"),
        (add_other_k, r"several K \(top4, top5\)"),
    ],
)
def test_missing_files_are_told(root, damage, message):
    damage(root)
    with pytest.raises(UserError, match=message):
        ReleasedLogits(root, 20)


def test_what_is_no_such_set_is_told(tmp_path):
    with pytest.raises(UserError, match="There is no folder"):
        ReleasedLogits(tmp_path / "nowhere", 20)
    with pytest.raises(UserError, match="no folder logits_top"):
        ReleasedLogits(tmp_path, 20)
    (tmp_path / "logits_top0_epoch0").mkdir()
    with pytest.raises(UserError, match="no class at all"):
        ReleasedLogits(tmp_path, 20)


def test_a_wrong_number_of_classes_is_told(root):
    with pytest.raises(UserError, match="leaves none of 4 for the rest"):
        ReleasedLogits(root, 4)
    with pytest.raises(UserError, match="at most 32768 classes, and not 40000"):
        ReleasedLogits(root, 40_000)


def cut(root):
    file = root / "logits_top4_epoch1" / "rank1-values.bin"
    file.write_bytes(file.read_bytes()[:-1])


def rename_k(root):
    for epoch in range(3):
        (root / f"logits_top4_epoch{epoch}").rename(root / f"logits_top3_epoch{epoch}")


def drop_key(root):
    file = root / "logits_top4_epoch1" / "rank1-keys.txt"
    file.write_text("".join(file.read_text().splitlines(keepends=True)[1:]))


def blank_key(root):
    file = root / "logits_top4_epoch1" / "rank1-keys.txt"
    lines = file.read_text().splitlines()
    file.write_text("".join(f"{line}\n" for line in ["", *lines[1:]]))


def repeat_key(root):
    file = root / "logits_top4_epoch1" / "rank1-keys.txt"
    lines = file.read_text().splitlines()
    file.write_text("".join(f"{line}\n" for line in [lines[1], *lines[1:]]))


def empty(root):
    for file in (root / "logits_top4_epoch1").iterdir():
        file.write_bytes(b"")


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (cut, "has 99 bytes, but its 5 keys with top-4 records of 20 bytes need 100"),
        (rename_k, "top-3 records of 16 bytes need 80; .* another K"),
        (drop_key, "has 100 bytes, but its 4 keys"),
        (blank_key, "an empty line"),
        (repeat_key, "2 times, which one process never writes"),
        (empty, "epoch1 has no records"),
    ],
)
def test_files_that_do_not_fit_are_told(root, damage, message):
    damage(root)
    released = ReleasedLogits(root, 20)
    with pytest.raises(UserError, match=message):
        released.keys(1)


def test_few_keys_of_two_processes_fill_the_last_round_and_more_are_an_error(tmp_path):
    folder = tmp_path / "logits_top1_epoch0"
    rows = np.arange(6)
    classes, probs = np.zeros((6, 1)), np.ones((6, 1))
    write_rank(folder, 0, list("abcdef"), rows, classes, probs)
    write_rank(folder, 1, list("abcghi"), rows + 10, classes, probs)
    released = ReleasedLogits(tmp_path, 5)
    assert released.keys(0) == dict(zip("abcdef", range(6), strict=True)) | {
        "g": 9,
        "h": 10,
        "i": 11,
    }
    assert released.read(0, np.array([9, 0])).view_seeds.tolist() == [13, 0]
    write_rank(folder, 1, list("abcdhi"), rows, classes, probs)
    with pytest.raises(UserError, match=re.escape("4 keys are in the files of several processes")):
        released.keys(0)


def test_a_process_without_records_is_none_the_less_one(tmp_path):
    folder = tmp_path / "logits_top1_epoch0"
    write_rank(folder, 0, [], np.empty(0), np.empty((0, 1)), np.empty((0, 1)))
    write_rank(folder, 1, ["a"], np.array([5]), np.array([[3]]), np.array([[0.5]]))
    released = ReleasedLogits(tmp_path, 5)
    assert released.keys(0) == {"a": 0}
    assert released.read(0, np.array([0])).view_seeds.tolist() == [5]


@pytest.mark.parametrize("name", ["keys.txt", "values.bin"])
@pytest.mark.parametrize(
    ("put", "said"),
    [
        (os.mkfifo, "it is a named pipe"),
        (os.mkdir, "it is a folder"),
        (lambda file: file.symlink_to("/dev/zero"), "it is a device"),
    ],
)
def test_no_regular_file_is_opened(root, name, put, said):
    file = root / "logits_top4_epoch1" / f"rank0-{name}"
    file.unlink()
    put(file)
    with pytest.raises(UserError, match=f"Can't read .*rank0-{name}: {said}.*; copy it again"):
        ReleasedLogits(root, 20).keys(1)


def test_keys_that_can_not_be_are_not_taken_into_memory(root):
    folder = root / "logits_top4_epoch1"
    os.truncate(folder / "rank0-keys.txt", 2**40)
    with pytest.raises(UserError, match="keys.txt: it has 1,099,511,627,776 bytes, over the limit"):
        ReleasedLogits(root, 20).keys(1)
    for name in ("keys.txt", "values.bin"):
        os.truncate(folder / f"rank0-{name}", 2**30)
    (folder / "rank0-keys.txt").write_bytes(b"")
    os.truncate(folder / "rank0-keys.txt", 2**30)
    with pytest.raises(UserError, match="rank0-keys.txt is no text; copy it again"):
        ReleasedLogits(root, 20).keys(1)


def test_an_epoch_of_a_hundred_million_is_told_at_once(root):
    (root / "logits_top4_epoch99999999").mkdir()
    with pytest.raises(UserError, match="epochs up to 99999999, but not .* and 9999999. more; add"):
        ReleasedLogits(root, 20)
