"""Hostile tables and shards: damaged, lying, mixed up, or reaching for others' files."""

import io
import json
import os
import random
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from tests.campaign.hostile import Hostile

OPTIONS = (
    "--data.num-workers",
    "0",
    "--data.holdout-ratio",
    "0",
    "--train.precision",
    "fp32",
    "--train.global-batch-size",
    "2",
)
NUM_IMAGES = 6


def photo(seed: int) -> bytes:
    pixels = np.random.default_rng(seed).integers(0, 256, (16, 16, 3), dtype=np.uint8)
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, "PNG")
    return stream.getvalue()


PHOTOS = [photo(seed) for seed in range(NUM_IMAGES)]
ROWS = [{"bytes": data, "path": f"{row}.png"} for row, data in enumerate(PHOTOS)]


def doctor(
    name: str, root: Path | str, *words: str, exits: tuple[int, ...] = (2,), says: str = ""
) -> Hostile:
    return Hostile(name, ("doctor", "--data", str(root), *OPTIONS, *words), exits, says)


def table(**columns: Any) -> pa.Table:
    return pa.table({"image": ROWS, "label": [0, 1] * 3} | columns)


def write_arrow(
    file: Path, content: pa.Table, new: Any = pa.ipc.new_stream, **options: Any
) -> None:
    with new(str(file), content.schema, options=pa.ipc.IpcWriteOptions(**options)) as writer:
        writer.write_table(content)


def write_tar(file: Path, members: list[tuple[str, bytes, bytes | str]]) -> None:
    with tarfile.open(file, "w", format=tarfile.GNU_FORMAT) as archive:
        for name, kind, content in members:
            info = tarfile.TarInfo(name)
            info.type = kind
            if isinstance(content, str):
                info.linkname = content
            else:
                info.size = len(content)
            archive.addfile(info, io.BytesIO(content) if info.size else None)


def regular(*names: str) -> list[tuple[str, bytes, bytes | str]]:
    photos = (PHOTOS[row % NUM_IMAGES] for row in range(len(names)))
    return [(name, tarfile.REGTYPE, data) for name, data in zip(names, photos, strict=True)]


def inputs(folder: Path) -> Iterator[Hostile]:
    """All of this area, with their files below ``folder``."""
    for part in (
        tables, damaged_tables, notes, paths, shards, damaged_shards, roots, mixtures, classes,
    ):  # fmt: skip
        place = folder / part.__name__
        place.mkdir()
        yield from part(place)


def tables(folder: Path) -> Iterator[Hostile]:
    """Sound files with columns that few have."""
    columns = {
        "lists": pa.array([["a"]] * NUM_IMAGES),
        "maps": pa.array([[("k", 1)]] * NUM_IMAGES, pa.map_(pa.string(), pa.int8())),
        "embeddings": pa.array([[0.5] * 4] * NUM_IMAGES, pa.list_(pa.float16(), 4)),
        "decimals": pa.array([1] * NUM_IMAGES, pa.decimal128(9, 2)),
        "durations": pa.array([1] * NUM_IMAGES, pa.duration("ns")),
        "nothing": pa.nulls(NUM_IMAGES),
        "a.b": pa.array([1] * NUM_IMAGES),
        "image.bytes": pa.array([b"x"] * NUM_IMAGES),
    }
    for name, column in columns.items():
        pq.write_table(table(**{name: column}), folder / f"{name}.parquet")
        yield doctor(f"a column of {name}", folder / f"{name}.parquet", exits=(0,))
    labels = {
        "lists": ([[1]] * NUM_IMAGES, "no label"),
        "halves": ([0.5] * NUM_IMAGES, "left out as a label"),
        "negative": ([-1] * NUM_IMAGES, "left out as a label"),
        "identifiers": ([10**12] * NUM_IMAGES, "left out as a label"),
        "captions": ([str(row) for row in range(NUM_IMAGES)], "another word in each row"),
        "partly missing": ([0, None] * 3, "3 of 6 labels are missing"),
        "infinite": ([float("inf")] * NUM_IMAGES, "left out as a label"),
    }
    for name, (column, says) in labels.items():
        pq.write_table(table(label=column), folder / f"label {name}.parquet")
        yield doctor(f"labels: {name}", folder / f"label {name}.parquet", exits=(0,), says=says)
    none = pa.array([None] * NUM_IMAGES, pa.struct({"bytes": pa.binary(), "path": pa.string()}))
    pq.write_table(pa.table({"image": none}), folder / "none.parquet")
    yield doctor("rows without an image", folder / "none.parquet", exits=(1,), says="no image")
    pq.write_table(table().slice(0, 0), folder / "empty.parquet")
    yield doctor("no rows", folder / "empty.parquet", says="no images")
    pq.write_table(pa.table({"text": ["a"]}), folder / "text.parquet")
    yield doctor("no image column", folder / "text.parquet", says="--data.image-column")
    twice = pa.table([ROWS, [0] * 6, [1] * 6], names=["image", "label", "label"])
    pq.write_table(twice, folder / "twice.parquet")
    yield doctor("two columns of one name", folder / "twice.parquet", exits=(0,))
    yield doctor(
        "one of two columns of one name", folder / "twice.parquet", "--data.label-column", "label",
        says="2 columns 'label'",
    )  # fmt: skip


def damaged_tables(folder: Path) -> Iterator[Hostile]:
    """Of each kind some with flipped bits, some cut; what is not read is refused as damaged."""
    kinds = {"stream.arrow": pa.ipc.new_stream, "file.arrow": pa.ipc.new_file}
    for name, new in kinds.items():
        write_arrow(folder / name, table(), new)
    write_arrow(folder / "packed.arrow", table(), compression="zstd")
    pq.write_table(table(), folder / "a.parquet")
    draw = random.Random(0)
    for name in (*kinds, "packed.arrow", "a.parquet"):
        sound = (folder / name).read_bytes()
        for number in range(3):
            data = bytearray(sound)
            for _ in range(1 + 4 * number):
                data[draw.randrange(len(data))] ^= 1 << draw.randrange(8)
            file = folder / f"flipped {number} {name}"
            file.write_bytes(data)
            yield doctor(file.name, file, exits=(0, 1, 2))
        file = folder / f"cut {name}"
        file.write_bytes(sound[: len(sound) * 2 // 3])
        yield doctor(file.name, file, exits=(1, 2))
    for name in ("pipe.parquet", "pipe.arrow"):
        os.mkfifo(folder / name)
        yield doctor(f"a {name}", folder / name, says="a named pipe")
    for name in ("giant.parquet", "giant.arrow"):
        with open(folder / name, "wb") as file:
            file.truncate(2**41)
        yield doctor(f"a sparse {name}", folder / name, says="as a table")
    (folder / "folder.parquet").mkdir()
    yield doctor("an empty folder called .parquet", folder / "folder.parquet", says="no images")
    (folder / "round.parquet").symlink_to("round.parquet")
    yield doctor("a link to itself", folder / "round.parquet")


def notes(folder: Path) -> Iterator[Hostile]:
    """What ``datasets`` notes in a schema, as it never would."""
    kind = {"_type": "ClassLabel", "names": ["a", "b"]}
    texts = {
        "cut": "[",
        "deep": "[" * 100_000,
        "a list": "[]",
        "NaN": '{"info": NaN}',
        "names of numbers": json.dumps({"info": {"features": {"label": kind | {"names": [1]}}}}),
    }
    for name, text in texts.items():
        file = folder / f"{name}.parquet"
        pq.write_table(table().replace_schema_metadata({"huggingface": text}), file)
        yield doctor(f"notes: {name}", file, says="schema of")
    text = json.dumps({"info": {"features": {"label": kind | {"names": ["a"]}}}})
    pq.write_table(table().replace_schema_metadata({"huggingface": text}), folder / "few.parquet")
    yield doctor("fewer names than classes", folder / "few.parquet", says="names of 1 classes")
    kind = {"_type": "ClassLabel", "num_classes": 10**15}
    text = json.dumps({"info": {"features": {"label": kind}}})
    pq.write_table(table().replace_schema_metadata({"huggingface": text}), folder / "many.parquet")
    yield doctor("a thousand million million classes", folder / "many.parquet", exits=(0,))


def paths(folder: Path) -> Iterator[Hostile]:
    """Rows that name files which are not the table's."""
    (folder / "x.png").write_bytes(PHOTOS[0])
    (folder / "t").mkdir()
    os.mkfifo(folder / "t" / "pipe.png")
    places = {
        "a password file": "/etc/passwd",
        "a folder above": "../x.png",
        "a way around": "sub/../../x.png",
        "an absolute one": str(folder / "x.png"),
        "a device": "/dev/zero",
        "a pipe": "pipe.png",
        "a NUL": "x\0.png",
        "an address": "https://example.org/x.png",
        "none": "",
    }
    for name, place in places.items():
        rows = [{"bytes": None, "path": place}] * NUM_IMAGES
        pq.write_table(pa.table({"image": rows}), folder / "t" / f"{name}.parquet")
        yield doctor(f"a path: {name}", folder / "t" / f"{name}.parquet", exits=(1,))


def shards(folder: Path) -> Iterator[Hostile]:
    """Sound archives with members that are passed over, linked or lie."""
    reg, sym = tarfile.REGTYPE, tarfile.SYMTYPE
    cases = {
        "devices": ([("a.jpg", tarfile.CHRTYPE, b""), *regular("0.png", "1.png")], (0,), "devices"),
        "links out": ([("a.png", sym, "/etc/passwd"), *regular("0.png", "1.png")], (0,), "links"),
        "links up": ([("a.png", sym, "../../x"), *regular("0.png", "1.png")], (0,), "links"),
        "a ring of links": ([("a.png", sym, "b.png"), ("b.png", sym, "a.png")], (2,), "no images"),
        "hard links": (
            [*regular("0.png"), *[(f"{n}.png", tarfile.LNKTYPE, "0.png") for n in range(1, 9)]],
            (0,), "",
        ),
        "names that climb": (regular("../../a.png", "/etc/b.png"), (0,), ""),
        "repeated names": (regular("0.png", "0.png", "1.png"), (0,), "the same name"),
        "dots": (regular("a.1.png", "a.2.png", "b.1.png"), (0,), ""),
        "masks alone": (regular("0.left.png", "0.right.png"), (2,), "dots in their names"),
        "hidden": (regular("._0.png", "0.png", "1.png"), (0,), "hidden"),
        "folders of other programs": (
            regular("__MACOSX/0.png", "a/@eaDir/0.png", "0.png", "1.png"), (0,), "other programs",
        ),
        "no image": ([("README", reg, b"x")], (2,), "no images"),
        "a text as image": ([("0.png", reg, b"no image"), *regular("1.png")], (1,), ""),
        "a name of 5000 letters": (regular("a" * 5000 + ".png", "0.png"), (0,), ""),
        "a name that is no UTF-8": (regular("\udcff.png", "0.png"), (0,), ""),
        "deep JSON": ([("0.json", reg, b"[" * 10**5), *regular("0.png", "1.png")], (0,), ""),
        "large JSON": (
            [("0.json", reg, b"[" + b"1," * 10**6), *regular("0.png", "1.png")], (0,), "larger",
        ),
        "JSON of other kinds": (
            [("0.json", reg, b'{"label": [{}]}'), *regular("0.png", "1.png")], (0,), "",
        ),
        "an endless number": ([("0.cls", reg, b"9" * 9999), *regular("0.png", "1.png")], (0,), ""),
        "numbers and words": (
            [("0.cls", reg, b"1"), ("1.cls", reg, b"cat"), *regular("0.png", "1.png")], (2,),
            "partly numbers",
        ),
    }  # fmt: skip
    for name, (members, exits, says) in cases.items():
        write_tar(folder / f"{name}.tar", members)
        yield doctor(f"shards: {name}", folder / f"{name}.tar", exits=exits, says=says)


def damaged_shards(folder: Path) -> Iterator[Hostile]:
    """Cut, flipped, joined, compressed, and headers that lie."""
    write_tar(folder / "a.tar", regular(*[f"{row}.png" for row in range(NUM_IMAGES)]))
    sound = (folder / "a.tar").read_bytes()
    with tarfile.open(folder / "a.tar") as archive:
        third, end = archive.getmembers()[2].offset, archive.offset
    contents = {
        "cut between two": sound[:third],
        "cut in a header": sound[: third + 99],
        "cut in an image": sound[: third + 600],
        "cut at its end": sound[:end],
        "a flipped header": sound[:third] + b"X" + sound[third + 1 :],
        "two joined": sound * 2,
        "garbage behind": sound + b"garbage" * 99,
        "garbage": bytes(random.Random(0).randbytes(5000)),
        "empty": b"",
        "zeros": bytes(10_240),
        "gzip": b"\x1f\x8b" + bytes(1000),
    }
    for name, data in contents.items():
        (folder / f"{name}.tar").write_bytes(data)
        yield doctor(f"a shard: {name}", folder / f"{name}.tar")
    header = bytearray(sound)
    header[124:136] = b"\xff" * 10 + b"\xfe\x00"  # a size of -512
    header[148:156] = b"%06o\0 " % sum(header[:148] + b" " * 8 + header[156:512])
    (folder / "negative.tar").write_bytes(header)
    yield doctor("a size below zero", folder / "negative.tar")
    extended = tarfile.TarInfo("é" * 99).tobuf(tarfile.PAX_FORMAT)
    (folder / "recursive.tar").write_bytes(extended[:1024] * 5000)
    yield doctor("headers of headers", folder / "recursive.tar")
    os.mkfifo(folder / "pipe.tar")
    yield doctor("a pipe.tar", folder / "pipe.tar", says="a named pipe")
    with open(folder / "giant.tar", "wb") as file:
        file.truncate(2**41)
    yield doctor("a sparse giant.tar", folder / "giant.tar", says="over the limit")
    (folder / "packed").mkdir()
    (folder / "packed" / "a.tar.gz").touch()
    yield doctor("a compressed shard", folder / "packed", says="unpack")


def roots(folder: Path) -> Iterator[Hostile]:
    """Addresses and splits."""
    for split in ("validation", "test"):
        pq.write_table(table(), folder / f"{split}-0.parquet")
    for name, root, says in (
        ("no training split", folder, "--data.split"),
        ("a million million shards", folder / "a-{0..999999999999}.tar", "names; correct"),
        ("braces backwards", folder / "a-{9..1}.tar", "names; correct"),
        ("a pattern of nothing", folder / "*.tar", "No file is called"),
        ("a pattern of everything", folder / "**" / "*", "split 'train'"),
        ("a pattern with a NUL", f"{folder}/\0*.tar", ""),
        ("an unknown protocol", "nowhere://bucket/a.tar", ""),
        ("a bracket", folder / "[.tar", ""),
    ):
        if "\0" not in str(root):  # no command line can hold it
            yield doctor(f"a root: {name}", root, says=says)
    yield doctor("a split that is chosen", folder, "--data.split", "val", exits=(0,))
    yield doctor("a split that is misspelt", folder, "--data.split", "tets", says="Did you mean")
    one = folder / "test-0.parquet"
    yield doctor("a split of one file", one, "--data.split", "test", says="no effect")


def mixtures(folder: Path) -> Iterator[Hostile]:
    """Images beside tables."""
    for name, count, exits, says in (
        ("a preview", 1, (0,), "(0.png) beside"),
        ("many images", 30, (2,), "holds both"),
    ):
        place = folder / name
        place.mkdir()
        pq.write_table(table(), place / "train-0.parquet")
        for number in range(count):
            (place / f"{number}.png").write_bytes(PHOTOS[0])
        yield doctor(f"{name} beside tables", place, exits=exits, says=says)


def classes(folder: Path) -> Iterator[Hostile]:
    """Held-out images whose classes are others, or the same by another name."""
    pq.write_table(table(label=["0", "1"] * 3), folder / "words.parquet")
    pq.write_table(table(label=["00", "01"] * 3), folder / "padded.parquet")
    pq.write_table(table(label=["cat", "dog"] * 3), folder / "animals.parquet")
    pq.write_table(table(label=[0, 5] * 3), folder / "more.parquet")
    for name, exits, says in (
        ("padded", (0,), "matched by number"),
        ("animals", (2,), "against words"),
        ("more", (2,), "different: "),
    ):
        held_out = ("--data.eval-root", str(folder / f"{name}.parquet"))
        yield doctor(
            f"classes: {name}", folder / "words.parquet", *held_out, exits=exits, says=says
        )
