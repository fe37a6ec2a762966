"""What the values or colours of masks mean: found from some of them and from names, and applied."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np

from limbeck.data.scenes.class_table import OTHER, ClassTable, Colour, counted
from limbeck.data.scenes.options import SceneOptions
from limbeck.data.scenes.pixels import PACK, RawMask
from limbeck.data.scenes.published import COLOUR_TABLES
from limbeck.data.scenes.scene import MAX_SCENE_CLASSES
from limbeck.data.source import BadImage
from limbeck.errors import UserError, did_you_mean
from limbeck.records import IGNORE

MAX_COLOURS = 64  # of masks without a table; more are a photo or blurred
MAX_STRANGE_RATIO = 0.2  # of masks with values that are no class; more are no accident
NUM_NAMED = 5
BINARY = ("background", "foreground")
MARGIN = 32  # JPEG moves black and white by less
ROUNDING = 2  # of 255: what colour profiles do to the colours of a PNG


@dataclass(eq=False)
class Coding:
    """From raw masks to label maps of ``classes``.

    ``index_of`` gives the class or ``IGNORE`` of each value, or of each packed colour where
    ``is_colour``. ``is_blurred``: masks are JPEG, and the nearest of these is meant. ``where`` says
    where the names are from.
    """

    classes: tuple[str, ...]
    index_of: dict[int, int]
    where: str
    is_colour: bool = False
    is_blurred: bool = False

    @cached_property
    def _sorted(self) -> tuple[np.ndarray, np.ndarray]:
        codes = np.array(sorted(self.index_of), np.int64)
        return codes, np.array([self.index_of[code] for code in codes.tolist()], np.uint8)

    @cached_property
    def _table(self) -> tuple[np.ndarray, np.ndarray]:
        """The class of each value up to 65535, and whether it is known."""
        codes, indices = self._sorted
        classes, is_known = np.full(65536, IGNORE, np.uint8), np.zeros(65536, bool)
        inside = codes < 65536
        classes[codes[inside]], is_known[codes[inside]] = indices[inside], True
        return classes, is_known

    def apply(self, raw: RawMask) -> np.ndarray:
        """The label map (H, W) uint8 of a mask; raises BadImage for what is no class."""
        if not self.is_colour and raw.is_colour:
            raise BadImage("its mask is in colours, those of the others are values")
        codes, indices = self._sorted
        if self.is_blurred:
            return indices[self._nearest(raw)]
        if not self.is_colour and raw.pixels.dtype in (np.uint8, np.uint16):
            classes, known = self._table
            is_known = known[raw.pixels]
            if is_known.all():
                return classes[raw.pixels]
        else:
            values = raw.colours() if self.is_colour else raw.pixels
            places = np.minimum(np.searchsorted(codes, values), len(codes) - 1)
            is_known = codes[places] == values
            if self.is_colour and not is_known.all():
                places, is_known = self._rounded(values, places, is_known)
            if is_known.all():
                return indices[places]
        raise BadImage(self._strange(raw, ~is_known))

    def _rounded(
        self, values: np.ndarray, places: np.ndarray, is_known: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        """The places of colours, also of those that a colour profile has moved a little."""
        strange, back = np.unique(values[~is_known], return_inverse=True)
        if len(strange) > MAX_COLOURS:
            return places, is_known
        codes = unpacked(self._sorted[0])
        distances = np.abs(unpacked(strange)[:, None] - codes).max(-1)  # [strange, codes]
        places, is_near = places.copy(), is_known.copy()
        places[~is_known] = distances.argmin(1)[back]
        is_near[~is_known] = distances.min(1)[back] <= ROUNDING
        return places, is_near

    def _nearest(self, raw: RawMask) -> np.ndarray:
        """The place in the codes of the nearest colour, or value, of each pixel."""
        codes = self._sorted[0]
        wanted = unpacked(codes) if self.is_colour else codes[:, None]
        given = unpacked(raw.colours()) if self.is_colour else raw.pixels[..., None]
        best = np.zeros(given.shape[:2], np.int64)
        least = np.full(given.shape[:2], np.iinfo(np.int64).max)
        for place, code in enumerate(wanted):  # one at a time: all at once are gigabytes
            distance = ((given.astype(np.int64) - code) ** 2).sum(-1)
            best[distance < least] = place
            least = np.minimum(least, distance)
        return best

    def _strange(self, raw: RawMask, is_strange: np.ndarray) -> str:
        values = raw.colours() if self.is_colour else raw.pixels
        found = sorted(Counter(values[is_strange].tolist()).items(), key=lambda each: -each[1])
        what = "colour" if self.is_colour else "value"
        return (
            f"its mask has the {what} {shown([found[0][0]], self.is_colour)} at {found[0][1]} "
            f"pixels, which is no class (the {what}s are {shown(self.index_of, self.is_colour)})"
        )

    def merged(self, merges: Sequence[str]) -> "Coding":
        """With some classes made one, ``new=old,old``, or none, ``ignore=old``."""
        names: dict[int, str | None] = dict(enumerate(self.classes))
        index = {name: place for place, name in enumerate(self.classes)}
        for entry in merges:
            new, _, olds = entry.partition("=")
            for old in map(str.strip, olds.split(",")):
                if old not in index:
                    raise UserError(
                        f"data.merge: there is no class '{old}'.{did_you_mean(old, self.classes)} "
                        f"The classes are {', '.join(self.classes)}."
                    )
                names[index[old]] = None if new.strip() == "ignore" else new.strip()
        kept = tuple(dict.fromkeys(name for name in names.values() if name is not None))
        place_of = {name: place for place, name in enumerate(kept)}
        moved = {place: IGNORE if n is None else place_of[n] for place, n in names.items()}
        moved[IGNORE] = IGNORE
        index_of = {code: moved[place] for code, place in self.index_of.items()}
        return replace(self, classes=kept, index_of=index_of)


def unpacked(colours: np.ndarray) -> np.ndarray:
    """Packed colours (...) as (..., 3)."""
    return np.stack([colours >> 16, colours >> 8 & 255, colours & 255], -1)


def shown(codes: Sequence[int] | dict[int, int], is_colour: bool) -> str:
    """Values or colours for people."""
    plain = sorted(codes)
    words = [str((c >> 16, c >> 8 & 255, c & 255)) if is_colour else str(c) for c in plain]
    if not is_colour and len(plain) > 2 and plain == list(range(plain[0], plain[-1] + 1)):
        return f"{plain[0]} to {plain[-1]}"
    return ", ".join(words[:NUM_NAMED]) + (", ..." if len(words) > NUM_NAMED else "")


def deduce(
    raws: Sequence[RawMask],
    table: ClassTable | None,
    options: SceneOptions,
    *,
    has_background: bool = True,
) -> Coding:
    """What masks mean, from some of them and the table of their names, if there is one.

    ``has_background``: whether 0 is a class, where the options don't say. Raises UserError where
    that can't be found out, and where it doesn't fit one mask in five.
    """
    if options.ignore_background is not None:
        has_background = not options.ignore_background
    if _are_colours(raws, table):
        if options.ignore_values:
            raise UserError(
                "data.ignore_values has no effect on masks in colours; leave classes out with "
                "--data.merge ignore=NAME."
            )
        coding = _colour_coding(raws, table, has_background)
    else:
        coding = _value_coding(raws, table, options, has_background)
    _check_number(coding.classes, least=0)
    _check_fit(coding, raws, options)
    if options.merge:
        coding = coding.merged(options.merge)
    _check_number(coding.classes, least=2)
    return coding


def _check_number(classes: tuple[str, ...], least: int) -> None:
    number = len(classes)
    if not least <= number <= MAX_SCENE_CLASSES:
        raise UserError(
            f"The masks have {number} class{'es' * (number != 1)}"
            f"{f' ({classes[0]})' if number == 1 else ''}, and 2 to {MAX_SCENE_CLASSES} can be "
            "learnt; see what is ignored and merged, or name the classes with --data.class-names."
        )


def _are_colours(raws: Sequence[RawMask], table: ClassTable | None) -> bool:
    if any(raw.is_colour for raw in raws):
        return True
    painted = [raw for raw in raws if raw.palette is not None]
    if not painted:
        return False
    if table is not None and table.colours:
        known = _codes(table)
        if all(set(np.unique(raw.colours()).tolist()) <= known for raw in painted):
            return True
    # Palettes that differ between files, as of pictures made smaller: then colours alone can tell.
    colour_of: dict[int, tuple[int, ...]] = {}
    for raw in painted:
        assert raw.palette is not None
        for value in np.unique(raw.pixels).tolist():
            colour = tuple(raw.palette[value].tolist()) if value < len(raw.palette) else ()
            if colour_of.setdefault(value, colour) != colour:
                return True
    return False


def pack(colour: Colour) -> int:
    """A colour as one number."""
    return int(np.array(colour) @ PACK)


def _colour_coding(
    raws: Sequence[RawMask], table: ClassTable | None, has_background: bool
) -> Coding:
    counts = Counter(code for raw in raws for code in np.unique(raw.colours()).tolist())
    is_blurred = any(raw.is_blurred for raw in raws)
    if table is None or not table.colours:
        names = table.names if table is not None else ()
        several = COLOUR_TABLES if len(counts) > 1 else ()  # one colour would fit too many
        covering = [each for each in several if counts.keys() <= _codes(each)]
        table = next((each for each in covering if set(names) <= set(each.names)), None)
        if table is None and not names and not is_blurred and len(counts) <= MAX_COLOURS:
            colours = sorted(counts)
            listed = ["#" + format(code, "06x") for code in colours]
            triples = [tuple(each) for each in unpacked(np.array(colours)).tolist()]
            table = counted(listed, "the colours themselves", triples)
        if table is None:
            raise UserError(
                f"The masks are in {len(counts)} colours{' of JPEG' * is_blurred}, and nothing "
                "says which class each of them is; give their table as --data.class-file (a line "
                "for each: road 128 64 128) or in --data.class-names."
            )
    index_of = {pack(colour): place for place, colour in enumerate(table.colours)}
    for colour in table.ignored_colours:
        index_of.setdefault(pack(colour), IGNORE)
    names = table.names
    if not has_background:
        names, index_of = _without_class(names, index_of, index_of.get(0))
    return Coding(names, index_of, table.where, is_colour=True, is_blurred=is_blurred)


def _codes(table: ClassTable) -> set[int]:
    return {pack(colour) for colour in (*table.colours, *table.ignored_colours)}


def _without_class(
    names: tuple[str, ...], index_of: dict[int, int], place: int | None
) -> tuple[tuple[str, ...], dict[int, int]]:
    """The classes without one of them, which is ignored then."""
    if place is None or place == IGNORE:
        return names, index_of
    moved = {
        code: IGNORE if old in (place, IGNORE) else old - (old > place)
        for code, old in index_of.items()
    }
    return names[:place] + names[place + 1 :], moved


def _value_coding(
    raws: Sequence[RawMask], table: ClassTable | None, options: SceneOptions, has_background: bool
) -> Coding:
    seen = {value for raw in raws for value in np.unique(raw.pixels).tolist()}
    is_blurred = any(raw.is_blurred for raw in raws)
    if is_blurred:
        ends = {0 if value < MARGIN else 255 if value > 255 - MARGIN else 128 for value in seen}
        share = np.mean([((r.pixels < MARGIN) | (r.pixels > 255 - MARGIN)).mean() for r in raws])
        if ends - {0, 255} and share < 0.9:
            raise UserError(
                "The masks are JPEG, which blurs their values so that classes can't be told apart; "
                "export them as PNG."
            )
        seen = {0, 255}
    ignored = {*options.ignore_values, *(table.ignored if table is not None else ())}
    is_binary = 255 in seen - ignored and seen - ignored <= {0, 255}
    if is_binary and (table is None or len(table.names) <= 2):
        names = table.names if table is not None else BINARY
        names = names if len(names) == 2 else (BINARY[0], *names)
        where = table.where if table is not None else "black and white"
        table = ClassTable(names, (0, 255), where)
    else:
        ignored |= {IGNORE}
    if table is None:
        table = _by_values(sorted(seen - ignored))
    elif not has_background and table.is_counted and table.names[0].lower() not in OTHER:
        table = replace(table, values=tuple(range(1, len(table.names) + 1)))
    index_of = {value: place for place, value in enumerate(table.values)}
    names = table.names
    for value in sorted(ignored & set(index_of)):
        names, index_of = _without_class(names, index_of, index_of[value])
    if not has_background:
        names, index_of = _without_class(names, index_of, index_of.get(0))
        ignored |= {0}
    return Coding(
        names, dict.fromkeys(ignored, IGNORE) | index_of, table.where, is_blurred=is_blurred
    )


def _by_values(values: list[int]) -> ClassTable:
    """Classes without names: 0 to the largest value, or the values themselves where few are used.

    Greys such as 0, 85 and 170 are three classes, not 171.
    """
    if values and values[-1] + 1 > 2 * len(values) + NUM_NAMED:
        return ClassTable(tuple(map(str, values)), tuple(values), "the values in the masks")
    number = max(values, default=0) + 1
    names = BINARY if number == 2 else tuple(map(str, range(number)))
    return counted(names, "the values in the masks")


def _check_fit(coding: Coding, raws: Sequence[RawMask], options: SceneOptions) -> None:
    reasons = []
    for raw in raws:
        try:
            coding.apply(raw)
        except BadImage as error:
            reasons.append(str(error))
    if len(reasons) > MAX_STRANGE_RATIO * len(raws):
        raise UserError(
            f"{len(reasons)} of {len(raws)} masks don't fit the classes of {coding.where}: of one "
            f"{reasons[0]}. Name all classes with --data.class-names, or say what is none with "
            "--data.ignore-values, or with --data.ignore-background if the classes begin at 1."
        )
