"""Images and videos in any places: files, folders, patterns, tables, shards, the hub."""

import glob
import os
from dataclasses import dataclass
from pathlib import Path

from limbeck.data.folder import FilesSource
from limbeck.data.open import FORM_OF_SUFFIX, open_source
from limbeck.data.options import DataOptions
from limbeck.data.source import Chain, Source
from limbeck.data.video import is_video
from limbeck.errors import UserError


@dataclass(frozen=True)
class Found:
    """What the places hold: images, and videos by key; ``root`` is where the keys begin."""

    source: Source | None
    videos: dict[str, Path]
    root: str

    def keys(self) -> list[str]:
        """Of all images, then of all videos."""
        number = len(self.source) if self.source else 0
        return [*(self.source.key(index) for index in range(number)), *self.videos]


def open_files(places: tuple[str, ...], data: DataOptions | None = None) -> Source:
    """The images of all places, each once; raises UserError where there are none."""
    found = open_places(places, data or DataOptions())
    if found.source is None:
        raise UserError(f"There are no images in {' '.join(places)}.")
    return found.source


def open_places(places: tuple[str, ...], data: DataOptions) -> Found:
    """The images and videos of all places, each once; raises UserError where there are none."""
    files: dict[Path, None] = {}
    sources: list[Source] = []
    for place in places:
        is_pattern = glob.has_magic(place) and not os.path.exists(place)
        found = sorted(glob.glob(place, recursive=True)) if is_pattern else [place]
        if is_pattern and found and all(Path(each).suffix in FORM_OF_SUFFIX for each in found):
            found = [place]
        for each in found:
            if Path(each).is_file() and Path(each).suffix not in FORM_OF_SUFFIX:
                files[Path(each)] = None
                continue
            source = open_source(each, data, data.split)
            if isinstance(source, FilesSource):
                keys = map(source.key, range(len(source)))
                files |= dict.fromkeys(Path(each) / key for key in keys)
            else:
                sources.append(source)
    if not files and not sources:
        raise UserError(f"There are no images in {' '.join(places)}.")
    whole = [file.absolute() for file in files]
    root = Path(os.path.commonpath([file.parent for file in whole])) if files else Path()
    videos = {file.relative_to(root).as_posix(): file for file in whole if is_video(file)}
    keys = [file.relative_to(root).as_posix() for file in whole if not is_video(file)]
    sources = [*([FilesSource(root, keys, (), None)] if keys else []), *sources]
    source = Chain(sources) if len(sources) > 1 else sources[0] if sources else None
    return Found(source, videos, str(root) if files else " ".join(places))
