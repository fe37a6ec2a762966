import dataclasses
import json
import os

import pytest

from limbeck.data.options import DataOptions
from limbeck.data.scan import Spread, scan
from tests.data.images import MemorySource, encode, photo


def make_source():
    files = [encode(photo(20 + size, 10, seed=size)) for size in range(40)]
    files += [files[3], files[3], files[7]]
    files += [encode(photo(5, 90).convert("L"), "PNG"), b"", None, files[0][:200]]
    return MemorySource(files, labels=[index % 3 for index in range(len(files))])


@pytest.mark.parametrize("num_workers", [0, 2])
def test_report(num_workers):
    source = make_source()
    told = []
    report = scan(
        source, DataOptions(), num_workers, lambda done, total: told.append((done, total))
    )
    assert (report.num_images, report.num_readable) == (47, 44)
    assert report.total_bytes == sum(len(data or b"") for data in source.files)
    assert report.width == Spread(5, 37.5, 59) and report.height == Spread(10, 10, 90)
    assert report.formats == {"JPEG": 43, "PNG": 1} and report.modes == {"RGB": 43, "L": 1}
    assert [key for key, _ in report.bad] == ["image 44", "image 45", "image 46"]
    assert dict(report.bad)["image 45"] == "it is gone" and "empty" in dict(report.bad)["image 44"]
    assert report.duplicates == (("image 3", "image 40", "image 41"), ("image 7", "image 42"))
    assert report.class_counts == {"class 0": 16, "class 1": 16, "class 2": 15}
    assert told[-1] == (47, 47) and told == sorted(told)


def test_report_is_plain_data():
    plain = dataclasses.asdict(scan(make_source(), DataOptions(), 0))
    assert json.loads(json.dumps(plain))["num_images"] == 47


@pytest.mark.parametrize("num_workers", [0, 2])
def test_damaged_jpeg_is_told(num_workers, caplog, capfd):
    files = [encode(photo(200, 160, seed=seed)) for seed in range(40)]
    files[20] = files[20][: len(files[20]) // 2] + b"\xff\xd9"
    files[30] = files[30][:-2] + b"some more\xff\xd9"
    report = scan(MemorySource(files), DataOptions(), num_workers)
    assert report.damaged == ("image 20",) and report.num_readable == 40
    assert "1 readable images" in caplog.text and "image 20" in caplog.text
    os.write(2, b"still there")
    assert capfd.readouterr().err == "still there"


def test_unlabelled_unreadable_and_too_large():
    source = MemorySource([encode(photo()), b""])
    report = scan(source, DataOptions(max_image_pixels=100))
    assert report.num_readable == 0 and report.width == Spread(0, 0, 0)
    assert report.class_counts == {} and report.formats == {}
    assert "limit of 100" in report.bad[0][1]
