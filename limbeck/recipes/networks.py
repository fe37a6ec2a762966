"""Teacher, student and method of a run, fitted to each other."""

import importlib
import logging
import tomllib

import torch

from limbeck.errors import UserError, did_you_mean
from limbeck.methods import METHODS
from limbeck.methods.distiller import Teacher
from limbeck.methods.method import Method
from limbeck.methods.options import MethodOptions, PerMethodOptions
from limbeck.models.encoder import Encoder, EncoderFacts
from limbeck.models.options import StudentOptions, TeacherOptions
from limbeck.models.origins.load import load_encoder
from limbeck.models.vit import build_student, set_drop_path

log = logging.getLogger("limbeck")


def find_class(address: str, what: str) -> type:
    """The class or function named "module:Name"; raises UserError where there is none."""
    module_name, _, name = address.partition(":")
    module = importlib.import_module(module_name)
    if name not in vars(module):
        raise UserError(
            f"{what} '{address}': the module has no '{name}'.{did_you_mean(name, vars(module))}"
        )
    return vars(module)[name]


def method_class(name: str) -> type[Method]:
    """The class of a method, by its name in the table or as "module:Class"."""
    kind = find_class(METHODS.get(name, name), "method")
    if not (isinstance(kind, type) and issubclass(kind, Method)):
        raise UserError(f"method '{name}' is no limbeck.Method.")
    return kind


def method_options(name: str, sections: PerMethodOptions, own: tuple[str, ...]) -> MethodOptions:
    """The options of the chosen method: its section, or ``own`` lines for a user's class."""
    if name in METHODS:
        return getattr(sections, name.replace("-", "_"))
    from limbeck.config import from_plain

    try:
        values = tomllib.loads("\n".join(own))
    except tomllib.TOMLDecodeError as error:
        raise UserError(
            f"method_options {list(own)} are not NAME=VALUE as in TOML: {error}."
        ) from error
    return from_plain(method_class(name).Options, values, "method_options")


def load_teacher(
    options: TeacherOptions, student: EncoderFacts, device: torch.device
) -> Teacher | None:
    """The teacher, at the image size that gives it the student's patch grid; None if none is named.

    Raises UserError where no such size exists.
    """
    if options.source is None:
        return None
    overrides = {
        name: value
        for name in ("img_size", "num_heads", "patch_size")
        if (value := getattr(options, name)) is not None
    }
    encoder = load_encoder(options.source, **overrides)
    if encoder.facts.grid != student.grid and options.img_size is None:
        img_size = student.grid[0] * encoder.facts.patch_size
        log.info(
            "The teacher gets images of %d px (its patches are %d px), so that its grid of patches "
            "is the student's, %d x %d.",
            img_size, encoder.facts.patch_size, *student.grid,
        )  # fmt: skip
        encoder = load_encoder(options.source, **overrides | {"img_size": img_size})
    return Teacher(encoder, device, options.precision)


def start_student(options: StudentOptions, drop_path_rate: float, seed: int) -> Encoder:
    """The student at its start: fresh, or from ``options.weights``."""
    if options.weights is None:
        student = build_student(options, seed=seed)
    else:
        student = load_encoder(options.weights, img_size=options.img_size).train()
    depth = student.facts.depth
    # Constant, and none in the last block: TinyMIM's pre-training (fact sheet 1.9).
    set_drop_path(student, [drop_path_rate] * (depth - 1) + [0.0])
    return student


def fit_heads(student: Encoder, method: Method) -> None:
    """Give the student's blocks the head counts that the method's taps state."""
    for tap in method.student_taps:
        if tap.num_heads is not None and student.facts.num_heads[tap.block] != tap.num_heads:
            log.info(
                "Block %d of the student gets %d heads (it had %d), as the method asks.",
                tap.block, tap.num_heads, student.facts.num_heads[tap.block],
            )  # fmt: skip
            student.set_num_heads(tap.block, tap.num_heads)
