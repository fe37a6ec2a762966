import io
import json
import logging
import os
import random
import tarfile

import pytest

from limbeck.data.shards import TarSource, open_shards
from limbeck.data.source import BadImage
from limbeck.errors import UserError
from tests.data.images import encode, photo, write_shard

IMAGES = [encode(photo(seed=seed)) for seed in range(4)]


def test_webdataset_samples_with_class_numbers(tmp_path):
    write_shard(
        tmp_path / "s-0.tar",
        [
            ("a/0001.cls", b"1\n"),
            ("a/0001.jpg", IMAGES[0]),
            ("a/0001.seg.png", b"a mask, not an image of its own"),
            ("a/0001.txt", b"a caption"),
            ("b/0001.JPEG", IMAGES[1]),
            ("b/0001.cls", b"0"),
        ],
    )
    write_shard(tmp_path / "s-1.tar", [("a/0001.png", IMAGES[2]), ("a/0001.cls", b"2")])
    source = open_shards(str(tmp_path / "s-{0..1}.tar"), None, "train")
    keys = [source.key(index) for index in range(len(source))]
    assert keys == ["s-0.tar/a/0001.jpg", "s-0.tar/b/0001.JPEG", "s-1.tar/a/0001.png"]
    assert source.classes == ("0", "1", "2")
    assert [source.label(index) for index in range(3)] == [1, 0, 2]
    assert [source.read(index).data for index in range(3)] == IMAGES[:3]


def test_json_labels_and_words(tmp_path):
    members = []
    for number, fields in enumerate([{"label": 3}, {"cls": 0}, {"class": "1"}]):
        members += [
            (f"{number}.jpg", IMAGES[number]),
            (f"{number}.json", json.dumps(fields).encode()),
        ]
    write_shard(tmp_path / "numbers.tar", members)
    source = TarSource([str(tmp_path / "numbers.tar")])
    assert [source.label(index) for index in range(3)] == [3, 0, 1]
    write_shard(
        tmp_path / "words.tar",
        [("0.jpg", IMAGES[0]), ("0.cls", b"dog"), ("1.jpg", IMAGES[1]), ("1.cls", b"cat")],
    )
    source = TarSource([str(tmp_path / "words.tar")])
    assert source.classes == ("cat", "dog") and source.label(0) == 1


def test_a_caption_in_json_is_no_label(tmp_path):
    write_shard(
        tmp_path / "a.tar",
        [("0.jpg", IMAGES[0]), ("0.json", b'{"caption": "x"}'), ("1.json", b"{")],
    )
    source = TarSource([str(tmp_path / "a.tar")])
    assert source.classes == () and source.label(0) is None and source.read(0).label is None


def test_a_caption_beside_a_class_number_leaves_it(tmp_path):
    write_shard(
        tmp_path / "a.tar", [("0.cls", b"4"), ("0.jpg", IMAGES[0]), ("0.json", b'{"url": "x"}')]
    )
    assert TarSource([str(tmp_path / "a.tar")]).label(0) == 4


def test_partly_labelled_is_unlabelled(tmp_path):
    write_shard(tmp_path / "a.tar", [("0.jpg", IMAGES[0]), ("0.cls", b"1"), ("1.jpg", IMAGES[1])])
    source = TarSource([str(tmp_path / "a.tar")])
    assert source.classes == () and source.label(0) is None


def test_folder_of_shards_and_addresses(tmp_path):
    for number in range(2):
        write_shard(tmp_path / f"{number}.tar", [("x.jpg", IMAGES[number])])
    source = open_shards(str(tmp_path), None, "train")
    assert [source.key(index) for index in range(2)] == ["0.tar/x.jpg", "1.tar/x.jpg"]
    remote = open_shards(f"file://{tmp_path}/{{0..1}}.tar", None, "train")
    assert [remote.read(index).data for index in range(2)] == IMAGES[:2]
    assert [remote.key(index) for index in range(2)] == ["0.tar/x.jpg", "1.tar/x.jpg"]


def test_bad_shards_are_named(tmp_path):
    with pytest.raises(UserError, match=r"no shard .*a-0\.tar \(2 of 2"):
        open_shards(str(tmp_path / "a-{0..1}.tar"), None, "train")
    (tmp_path / "bad.tar").write_bytes(b"x" * 2000)
    with pytest.raises(UserError, match=r"bad\.tar"):
        TarSource([str(tmp_path / "bad.tar")])
    with tarfile.open(tmp_path / "packed.tar", "w:gz") as archive:
        archive.add(tmp_path / "bad.tar", "x.jpg")
    with pytest.raises(UserError, match="unpack"):
        TarSource([str(tmp_path / "packed.tar")])
    write_shard(tmp_path / "cut.tar", [("0.jpg", IMAGES[0]), ("1.jpg", IMAGES[1])])
    data = (tmp_path / "cut.tar").read_bytes()
    (tmp_path / "cut.tar").write_bytes(data[: len(IMAGES[0]) + 1200])
    with pytest.raises(UserError, match=r"cut\.tar"):
        TarSource([str(tmp_path / "cut.tar")])
    with pytest.raises(UserError, match="nowhere"):
        TarSource(["nowhere://bucket/a.tar"])


def test_no_images_and_equal_names(tmp_path):
    write_shard(tmp_path / "a.tar", [("0.txt", b"x")])
    with pytest.raises(UserError, match="no images"):
        TarSource([str(tmp_path / "a.tar")])
    (tmp_path / "sub").mkdir()
    for folder in (tmp_path, tmp_path / "sub"):
        write_shard(folder / "b.tar", [("0.jpg", IMAGES[0])])
    with pytest.raises(UserError, match="same key"):
        TarSource([str(tmp_path / "b.tar"), str(tmp_path / "sub" / "b.tar")])


def test_a_shard_that_vanished_gives_bad_images(tmp_path):
    write_shard(tmp_path / "a.tar", [("0.jpg", IMAGES[0])])
    source = TarSource([str(tmp_path / "a.tar")])
    (tmp_path / "a.tar").unlink()
    with pytest.raises(BadImage, match="can't be read"):
        source.read(0)


def keys(source):
    return [source.key(index).partition("/")[2] for index in range(len(source))]


def write_members(file, *members):
    """(name, type, link or bytes) each."""
    with tarfile.open(file, "w") as archive:
        for name, kind, content in members:
            info = tarfile.TarInfo(name)
            info.type = kind
            if isinstance(content, str):
                info.linkname = content
            else:
                info.size = len(content)
            archive.addfile(info, io.BytesIO(content) if info.size else None)


@pytest.fixture
def told(caplog):
    caplog.set_level(logging.INFO, logger="limbeck")
    return caplog


@pytest.mark.parametrize(
    "names",
    [
        ["0.jpg", "1.jpg", "shot_22.05.jpg", "shot_22.06.jpg"],
        [f"img.{number:04d}.jpg" for number in range(4)],
        [f"s{number}.input.jpg" for number in range(4)],
        ["v1.2/a.jpg", "v1.2/b.jpg", "v1.3/a.jpg", "c.12.30.png"],
    ],
)
def test_no_image_with_dots_in_its_name_vanishes(tmp_path, names, told):
    write_shard(tmp_path / "a.tar", list(zip(names, IMAGES, strict=True)))
    assert keys(TarSource([str(tmp_path / "a.tar")])) == names and not told.records


def test_parts_of_samples_are_left_out_and_told(tmp_path, told):
    names = ["0.jpg", "0.seg.png", "1.seg.png", "2.left.jpg", "2.right.jpg", "0.png"]
    write_shard(tmp_path / "a.tar", [(name, IMAGES[0]) for name in names])
    assert keys(TarSource([str(tmp_path / "a.tar")])) == ["0.jpg"]
    assert "1 members of the shards are left out: by the dots in their names they belong to" in (
        told.text
    )
    assert "3 members of the shards are left out: by the dots in their names they are parts" in (
        told.text
    )
    assert "1 members of the shards are left out: a sample has one image" in told.text


def test_parts_that_are_wanted_are_read_beside_their_image(tmp_path, told):
    names = ["0.jpg", "0.seg.png", "0.depth.png", "1.jpg", "1.MASK.png"]
    write_shard(tmp_path / "a.tar", list(zip(names, [*IMAGES, IMAGES[0]], strict=True)))
    source = TarSource([str(tmp_path / "a.tar")], beside=("mask.png", "seg.png"))
    assert keys(source) == ["0.jpg", "1.jpg"]
    assert source.read_beside(0) == IMAGES[1] and source.read_beside(1) == IMAGES[0]
    assert source.has_beside(0) and "1 members of the shards are left out" in told.text
    source = TarSource([str(tmp_path / "a.tar")], beside=("seg.png",))
    assert not source.has_beside(1)


def test_labels_of_names_with_dots(tmp_path):
    members = [("a.01.jpg", IMAGES[0]), ("a.02.jpg", IMAGES[1]), ("b.in.jpg", IMAGES[2])]
    labels = [("a.01.cls", b"2"), ("a.02.cls", b"1"), ("b.cls", b"0")]
    write_shard(tmp_path / "a.tar", [*members, *labels])
    source = TarSource([str(tmp_path / "a.tar")])
    assert [source.label(index) for index in range(3)] == [2, 1, 0]


def test_links_are_followed_within_the_shard_alone(tmp_path, told):
    (tmp_path / "outside.jpg").write_bytes(IMAGES[3])
    write_members(
        tmp_path / "a.tar",
        ("./0.jpg", tarfile.REGTYPE, IMAGES[0]),
        ("hard.jpg", tarfile.LNKTYPE, "0.jpg"),
        ("sub/soft.jpg", tarfile.SYMTYPE, "../hard.jpg"),
        ("early.jpg", tarfile.SYMTYPE, "late.jpg"),
        ("late.jpg", tarfile.REGTYPE, IMAGES[1]),
        ("out.jpg", tarfile.SYMTYPE, "../outside.jpg"),
        ("far.jpg", tarfile.SYMTYPE, str(tmp_path / "outside.jpg")),
        ("round.jpg", tarfile.SYMTYPE, "round.jpg"),
        ("ping.jpg", tarfile.SYMTYPE, "pong.jpg"),
        ("pong.jpg", tarfile.SYMTYPE, "ping.jpg"),
    )
    source = TarSource([str(tmp_path / "a.tar")])
    assert keys(source) == ["./0.jpg", "hard.jpg", "sub/soft.jpg", "early.jpg", "late.jpg"]
    images = [source.read(index).data for index in range(5)]
    assert images == [IMAGES[0]] * 3 + [IMAGES[1]] * 2
    assert "5 members of the shards are left out: they are links to what is not" in told.text


def test_other_members_are_counted(tmp_path, told):
    write_members(
        tmp_path / "a.tar",
        ("dir", tarfile.DIRTYPE, b""),
        ("0.jpg", tarfile.REGTYPE, IMAGES[0]),
        ("0.cls", tarfile.REGTYPE, b"1"),
        ("0.txt", tarfile.REGTYPE, b"a caption"),
        ("0.json", tarfile.REGTYPE, b'{"caption": "x"}'),
        ("README", tarfile.REGTYPE, b"x"),
        ("._0.jpg", tarfile.REGTYPE, b"of a Mac"),
        ("pipe.jpg", tarfile.FIFOTYPE, b""),
        ("0.jpg", tarfile.REGTYPE, IMAGES[1]),
    )
    source = TarSource([str(tmp_path / "a.tar")])
    assert keys(source) == ["0.jpg"] and source.read(0).data == IMAGES[0] and source.label(0) == 1
    assert "3 other members of the shards are left out (.txt 1, .json 1, no suffix 1)" in told.text
    for reason in ("they are hidden (._0.jpg)", "devices (pipe.jpg)", "the same name (0.jpg)"):
        assert reason in told.text


def test_folders_of_other_programs_hold_no_samples(tmp_path, told):
    names = ["./a/0.jpg", "__MACOSX/a/0.jpg", "a/@eaDir/0.jpg", ".cache/0.jpg", "../b/1.jpg"]
    write_shard(tmp_path / "a.tar", [(name, IMAGES[0]) for name in names])
    source = TarSource([str(tmp_path / "a.tar")])
    assert keys(source) == ["./a/0.jpg", "../b/1.jpg"]
    (note,) = source.notes
    assert note == (
        "3 members of the shards are left out: their folders are hidden or of other programs "
        "(__MACOSX/a/0.jpg)."
    )
    assert [record.message for record in told.records] == [note]


def test_labels_that_are_too_large_or_too_deep(tmp_path, told):
    large, deep = b'{"label": 1, "x": "' + b"x" * 2**20 + b'"}', b"[" * 10_000
    write_shard(tmp_path / "a.tar", [("0.jpg", IMAGES[0]), ("0.json", large), ("1.json", deep)])
    assert TarSource([str(tmp_path / "a.tar")]).classes == ()
    assert "as labels they are larger than 1,048,576 B (0.json)" in told.text


@pytest.mark.parametrize(
    ("labels", "classes"),
    [(["true", "false"], ("False", "True")), (["1.0", "0"], ("0", "1")), (['""', "1"], ())],
)
def test_kinds_of_json_labels(tmp_path, labels, classes):
    members = [(f"{row}.json", f'{{"label": {text}}}'.encode()) for row, text in enumerate(labels)]
    write_shard(tmp_path / "a.tar", [*members, ("0.jpg", IMAGES[0]), ("1.jpg", IMAGES[1])])
    assert TarSource([str(tmp_path / "a.tar")]).classes == classes


def test_a_shard_that_is_cut_or_damaged_anywhere_is_refused(tmp_path):
    write_shard(tmp_path / "a.tar", [(f"{row}.jpg", IMAGES[row]) for row in range(4)])
    sound = (tmp_path / "a.tar").read_bytes()
    with tarfile.open(tmp_path / "a.tar") as archive:
        headers = [member.offset for member in archive]
        end = archive.offset
    for cut in (headers[2], headers[2] + 100, headers[3], end, end + 100):
        (tmp_path / "a.tar").write_bytes(sound[:cut])
        with pytest.raises(UserError, match=r"Can't read the shard .*a\.tar .*(cut|damaged|end)"):
            TarSource([str(tmp_path / "a.tar")])
    for header in headers[1:]:
        damaged = bytearray(sound)
        damaged[header + random.Random(header).randrange(100)] ^= 1
        (tmp_path / "a.tar").write_bytes(damaged)
        with pytest.raises(UserError, match=rf"it is damaged or cut at byte {header:,}"):
            TarSource([str(tmp_path / "a.tar")])
    (tmp_path / "a.tar").write_bytes(sound[: end + 512])  # a single block of zeros is an end, too
    assert len(TarSource([str(tmp_path / "a.tar")])) == 4
    (tmp_path / "a.tar").write_bytes(sound * 2)
    with pytest.raises(UserError, match="something follows its end .* keep them apart"):
        TarSource([str(tmp_path / "a.tar")])


def test_a_size_below_zero_is_refused(tmp_path):
    write_shard(tmp_path / "a.tar", [("0.jpg", IMAGES[0]), ("1.jpg", IMAGES[1])])
    data = bytearray((tmp_path / "a.tar").read_bytes())
    data[124:136] = b"\xff" * 10 + b"\xfe\x00"  # -512, in base 256
    data[148:156] = b" " * 8
    data[148:156] = b"%06o\0 " % sum(data[:512])
    (tmp_path / "a.tar").write_bytes(data)
    with pytest.raises(UserError, match=r"Can't read the shard"):
        TarSource([str(tmp_path / "a.tar")])


def test_pipes_and_compressed_shards(tmp_path, told):
    os.mkfifo(tmp_path / "pipe.tar")
    with pytest.raises(UserError, match="it is a named pipe, not a regular file"):
        open_shards(str(tmp_path / "pipe.tar"), None, "train")
    (tmp_path / "pipe.tar").unlink()
    with tarfile.open(tmp_path / "a.tar.gz", "w:gz"):
        pass
    for root in (tmp_path, tmp_path / "a.tar.gz"):
        with pytest.raises(UserError, match=r"1 compressed .*\(a\.tar\.gz\); unpack them"):
            open_shards(str(root), None, "train")
    write_shard(tmp_path / "b.tar", [("0.jpg", IMAGES[0])])
    assert keys(open_shards(str(tmp_path), None, "train")) == ["0.jpg"]
    source = open_shards(str(tmp_path), None, "train")
    assert "1 compressed .tar files" in source.notes[0] and source.notes[0] in told.text


def test_splits_of_one_folder_are_kept_apart(tmp_path, told):
    for row, name in enumerate(("train-0.tar", "train-1.tar", "val-0.tar")):
        write_shard(tmp_path / name, [(f"{row}.jpg", IMAGES[row])])
    assert keys(open_shards(str(tmp_path), None, "train")) == ["0.jpg", "1.jpg"]
    assert "left out are validation 1" in told.text
    assert keys(open_shards(str(tmp_path), None, "validation")) == ["2.jpg"]
    assert keys(open_shards(f"{tmp_path}/*-0.tar", None, "train")) == ["0.jpg"]
    # Braces name each file.
    assert len(open_shards(f"{tmp_path}/{{train,val}}-0.tar", None, "train")) == 2
