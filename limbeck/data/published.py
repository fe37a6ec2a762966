"""The published files of corrupted images (arXiv 1903.12261): CIFAR-10-C and ImageNet-C."""

import io
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.lib.format import open_memmap
from PIL import Image

from limbeck.data.corrupted import Condition
from limbeck.data.folder import FilesSource, FolderSource
from limbeck.data.sample import draw_sample
from limbeck.data.source import BadImage, NamedSource, RawImage, Source
from limbeck.errors import UserError
from limbeck.files import check_regular

NUM_SEVERITIES = 5


class ArraySource(NamedSource):
    """One severity's part of a CIFAR-10-C file, (5 n, H, W, 3) uint8, severity after severity."""

    def __init__(self, file: Path, severity: int, labels: np.ndarray, num_classes: int) -> None:
        keys = [f"{index:05d}" for index in range(len(labels))]
        super().__init__(keys, tuple(map(str, range(num_classes))), labels)
        self.file = file
        self.first = (severity - 1) * len(labels)

    def read(self, index: int) -> RawImage:
        try:
            pixels = open_memmap(self.file, mode="r")[self.first + index]
        except (OSError, ValueError, IndexError) as error:
            raise BadImage(f"{self.file} can't be read: {error}") from error
        encoded = io.BytesIO()
        Image.fromarray(pixels).save(encoded, "BMP")
        return RawImage(encoded.getvalue(), self.label(index))


def open_published(
    root: str,
    names: Sequence[str],
    severities: Sequence[int],
    *,
    classes: tuple[str, ...],
    num_images: int,
) -> dict[Condition, Source]:
    """The same images, at most ``num_images``, under each corruption and severity.

    ``root`` holds CIFAR-10-C's NAME.npy and labels.npy, or ImageNet-C's NAME/SEVERITY/CLASS/, of
    which NAME may lie one folder deeper, as in its archives. Labels are places in ``classes``.
    Raises UserError for what is missing, and for other classes.
    """
    folder = Path(root).expanduser()
    if not folder.is_dir():
        raise UserError(f"corruptions.root: there is no folder {folder}.")
    conditions = [(name, severity) for name in names for severity in severities]
    is_arrays = any(folder.glob("*.npy"))
    return (_open_arrays if is_arrays else _open_folders)(folder, conditions, classes, num_images)


def _open_arrays(
    root: Path, conditions: Sequence[Condition], classes: tuple[str, ...], num_images: int
) -> dict[Condition, Source]:
    files = {name: root / f"{name}.npy" for name in ("labels", *dict(conditions))}
    _refuse_missing(root, [file.name for file in files.values() if not file.is_file()])
    labels = _load(files.pop("labels"))
    if labels.ndim != 1 or labels.dtype.kind not in "iu" or labels.min(initial=0) < 0:
        raise UserError(
            f"{root / 'labels.npy'} holds {labels.dtype} of shape {labels.shape}, not class "
            "numbers from 0; download it again."
        )
    labels = labels.astype(np.int64)
    num_classes = int(labels.max(initial=-1)) + 1
    if num_classes != len(classes):
        raise UserError(
            f"{root} has {num_classes} classes, and the images have {len(classes)}; "
            "corruptions.root needs the same ones."
        )
    for file in files.values():
        images = _load(file)
        is_right = images.ndim == 4 and images.shape[3] == 3 and images.dtype == np.uint8
        if not is_right or not len(images) == len(labels) or len(images) % NUM_SEVERITIES:
            raise UserError(
                f"{file} holds {images.dtype} of shape {images.shape}, not five severities of "
                f"images for the {len(labels)} labels beside it; download it again."
            )
        own, *others = np.split(labels, NUM_SEVERITIES)
        if not all(np.array_equal(own, other) for other in others):
            raise UserError(
                f"{root / 'labels.npy'} does not hold the same labels for each severity, so it is "
                "not of these images; download it again."
            )
    of_one = labels[: len(labels) // NUM_SEVERITIES]
    wholes = {(n, s): ArraySource(files[n], s, of_one, num_classes) for n, s in conditions}
    return {each: draw_sample(whole, num_images, seed=0) for each, whole in wholes.items()}


def _load(file: Path) -> np.ndarray:
    try:
        check_regular(file)
        return open_memmap(file, mode="r")  # unlike np.load it reads no pickles and no zips
    except (OSError, ValueError) as error:
        raise UserError(f"Can't read {file} as a numpy array; download it again.") from error


def _open_folders(
    root: Path, conditions: Sequence[Condition], classes: tuple[str, ...], num_images: int
) -> dict[Condition, Source]:
    folders: dict[Condition, Path] = {}
    for name, severity in conditions:
        homes = [place for place in (root / name, *root.glob(f"*/{name}")) if place.is_dir()]
        folders[name, severity] = next(iter(homes), root / name) / str(severity)
    lacking = [str(place.relative_to(root)) for place in folders.values() if not place.is_dir()]
    _refuse_missing(root, lacking)
    # Listed once: 75 folders of 50,000 files each would take longer than showing some of them.
    first = next(iter(folders.values()))
    whole = FolderSource(first)
    place_of = _places(whole.classes, classes, first)
    chosen = draw_sample(whole, num_images, seed=0)
    keys = [chosen.key(index) for index in range(len(chosen))]
    labels = [place_of[chosen.label(index)] for index in range(len(chosen))]
    for place in folders.values():
        gone = [str(place.relative_to(root) / key) for key in keys if not (place / key).is_file()]
        _refuse_missing(root, gone)
    return {
        condition: FilesSource(place, keys, classes, labels) for condition, place in folders.items()
    }


def _places(own: tuple[str, ...], classes: tuple[str, ...], folder: Path) -> dict[int | None, int]:
    """The place in ``classes`` of each class folder."""
    if not own:
        raise UserError(f"{folder} has no class folders; ImageNet-C's are SEVERITY/CLASS/.")
    if all(name.isdigit() for name in classes) and len(own) == len(classes):
        return {label: label for label in range(len(own))}  # numbered in the order of the names
    if odd := sorted(set(own) - set(classes))[:5]:
        raise UserError(
            f"Classes of {folder} are not those of the images ({', '.join(odd)}); "
            "corruptions.root needs the same class folders."
        )
    return {label: classes.index(name) for label, name in enumerate(own)}


def _refuse_missing(root: Path, missing: Sequence[str]) -> None:
    if missing:
        more = f" and {len(missing) - 3} more" if len(missing) > 3 else ""
        raise UserError(
            f"corruptions.root {root} lacks {', '.join(missing[:3])}{more}; complete it, or name "
            "what it has with --corruptions and --corruptions.severities."
        )
