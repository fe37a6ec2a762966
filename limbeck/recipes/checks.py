"""Checks of a config that need neither torch nor an image: the answer comes in a second."""

import importlib.util
import os
import sys
from collections.abc import Iterable
from dataclasses import fields
from pathlib import Path
from typing import Any

from limbeck.data.options import DataOptions
from limbeck.errors import UserError, did_you_mean
from limbeck.models.origins.names import check_source
from limbeck.models.options import StudentOptions
from limbeck.models.shapes import check_model_name


def check_choice(word: str, choices: Iterable[str], what: str) -> None:
    """Raise UserError with the nearest of the choices unless the word is one of them."""
    names = list(choices)
    if word not in names:
        raise UserError(
            f"There is no {what} '{word}'.{did_you_mean(word, names)} "
            f"Choose one of {', '.join(names)}."
        )


def check_path(path: str, option: str) -> None:
    """Raise UserError with the nearest sibling's name unless the path exists."""
    if os.path.exists(path):
        return
    parent = Path(path).parent
    siblings = sorted(entry.name for entry in parent.iterdir()) if parent.is_dir() else []
    missing = parent if not parent.is_dir() else Path(path)
    raise UserError(f"{option}: {missing} does not exist.{did_you_mean(Path(path).name, siblings)}")


def check_data(data: DataOptions) -> None:
    """The data roots are named and, where local, exist."""
    if not data.root:
        raise UserError(
            "No images are named; pass --data FOLDER (or a .parquet file, .tar shards, hf:NAME)."
        )
    for option, root in (("--data", data.root), ("--data.eval-root", data.eval_root)):
        is_local = "://" not in root and not root.startswith("hf:") and "{" not in root
        if root and is_local:
            check_path(root, option)


def check_student(student: StudentOptions) -> None:
    """The student's name is one that timm knows; its width divides by its heads."""
    check_model_name(student.name)
    if student.embed_dim and student.num_heads and student.embed_dim % student.num_heads:
        raise UserError(
            f"student.embed_dim {student.embed_dim} does not divide by student.num_heads "
            f"{student.num_heads}."
        )
    if student.img_size and student.patch_size and student.img_size % student.patch_size:
        raise UserError(
            f"student.img_size {student.img_size} does not divide by student.patch_size "
            f"{student.patch_size}."
        )
    if student.weights is not None:
        check_source(student.weights)


def check_unused(sections: Any, kind: type, chosen: str, option: str) -> None:
    """Raise UserError for a changed section of ``kind`` that is not the chosen one."""
    for field in fields(kind):
        name = field.name.replace("_", "-")
        if name != chosen and getattr(sections, field.name) != field.default:
            raise UserError(f"Options of --{name} have no effect with {option} {chosen}.")


def check_class_name(name: str, what: str) -> None:
    """Raise UserError unless "module:Class" names a module that can be found."""
    module = name.partition(":")[0]
    # A script's own folder is on the path already; the command line's working folder is not.
    if os.getcwd() not in sys.path:
        sys.path.append(os.getcwd())
    try:
        is_found = importlib.util.find_spec(module) is not None
    except (ImportError, ValueError):
        is_found = False
    if not is_found:
        raise UserError(f"{what} '{name}': there is no module '{module}' here or installed.")
