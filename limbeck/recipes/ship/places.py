"""Images and videos in any places: files, folders, patterns, tables, shards, the hub."""

import glob
import os
from pathlib import Path
from typing import NamedTuple

from limbeck.data.folder import FilesSource
from limbeck.data.open import FORM_OF_SUFFIX, open_source
from limbeck.data.options import DataOptions
from limbeck.data.source import Chain, Source
from limbeck.data.video import is_video
from limbeck.errors import UserError


class Found(NamedTuple):
    """Images, and videos by key; ``root`` is where the keys begin."""

    source: Source
    videos: dict[str, Path]
    root: str


def open_files(places: tuple[str, ...], data: DataOptions | None = None) -> Source:
    """The images alone; raises UserError where there are none."""
    if not len(source := open_places(places, data or DataOptions()).source):
        raise UserError(f"There are no images in {' '.join(places)}.")
    return source


def open_places(places: tuple[str, ...], data: DataOptions) -> Found:
    """The images and videos of all places, each once; raises UserError where there are none."""
    files: dict[Path, None] = {}
    sources: list[Source] = []
    for place in places:
        is_pattern = glob.has_magic(place) and not os.path.exists(place)
        found = sorted(glob.glob(place, recursive=True)) if is_pattern else [place]
        if not found:
            raise UserError(f"Nothing matches {place}.")
        if all(Path(each).suffix in FORM_OF_SUFFIX for each in found):
            found = [place]  # tables and shards are one source
        for path in map(Path, found):
            if path.is_file() and path.suffix not in FORM_OF_SUFFIX:
                files[path] = None
                continue
            source = open_source(place if len(found) == 1 else str(path), data, data.split)
            if isinstance(source, FilesSource):
                files |= dict.fromkeys(path / source.key(i) for i in range(len(source)))
            else:
                sources.append(source)
    if not files and not sources:
        raise UserError(f"There are no images in {' '.join(places)}.")
    whole = [file.absolute() for file in files]
    root = Path(os.path.commonpath([file.parent for file in whole])) if files else Path()
    named = {file.relative_to(root).as_posix(): file for file in whole}
    videos = {key: file for key, file in named.items() if is_video(file)}
    images: Source = FilesSource(root, [key for key in named if key not in videos], (), None)
    if sources:
        images = Chain([images, *sources] if len(images) else sources)
    return Found(images, videos, str(root) if files else " ".join(places))
