"""The loader's benchmark runs; its numbers are for a quiet machine."""

import re

import pytest

from benchmarks.__main__ import main
from benchmarks.loader import mean_crop_areas
from limbeck.data.folder import FolderSource
from tests.data.images import write_photos


def test_prints_the_ratio_and_the_crops(tmp_path, capsys):
    write_photos(tmp_path, ["a.jpg", "b.jpg"])
    ours, plain = mean_crop_areas(FolderSource(tmp_path), num_epochs=2000)
    assert ours == pytest.approx(plain, abs=0.02)  # four standard errors of 4000 draws
    main(["loader", str(tmp_path), "--repeats", "1"])
    assert re.search(r"ratio +\d+\.\d\d", capsys.readouterr().out)


def test_unknown_name_lists_the_names():
    with pytest.raises(SystemExit, match="loader"):
        main(["loder"])
