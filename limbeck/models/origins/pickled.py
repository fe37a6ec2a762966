"""Files of torch: read with tensors and plain data alone; of any other is said what it is.

Pickles are programs. What one would call is read off its instructions, which are never run.
"""

import argparse
import io
import pickle
import pickletools
import sys
import warnings
import zipfile
from pathlib import Path
from typing import Any

import torch

from limbeck.errors import UserError
from limbeck.files import MIB, reason_of
from limbeck.models.tensor_files import check_file

# Where training programs put the weights, in the order in which they are preferred: the weights of
# the last step go before their average, which is told.
CONTAINERS = (
    *("model", "state_dict", "model_state_dict", "model_state", "module", "teacher", "student"),
    *("model_ema", "state_dict_ema", "ema_state_dict", "ema"),
)

_MAX_INFLATED = 4  # torch does not compress; a bomb has a thousand
_MAX_PROGRAM_BYTES = 4 * MIB  # a network's has a tenth of that

# What a file of weights can't need and code that harms does.
_RUNS = frozenset((
    "os", "posix", "nt", "subprocess", "sys", "shutil", "socket", "pty", "runpy", "importlib",
    "imp", "ctypes", "code", "codeop", "pdb", "bdb", "timeit", "cProfile", "profile",
    "webbrowser", "urllib", "http", "requests", "httpx", "asyncio", "multiprocessing", "signal",
    "marshal", "pip", "pydoc", "smtplib", "ftplib", "telnetlib", "zipimport", "operator",
    "atexit", "_thread", "commands", "platform",
    "tempfile", "linecache", "trace", "venv", "ensurepip",
))  # fmt: skip
_BUILTINS = ("builtins.", "__builtin__.")
_RUN_NAMES = frozenset((
    "eval", "exec", "execfile", "compile", "open", "__import__", "globals", "locals", "input",
    "breakpoint", "setattr",
))  # fmt: skip
_RUN_STARTS = (
    "torch.hub.", "torch.load", "torch.serialization.load", "torch.jit.load", "torch.ops.",
    "torch.utils.cpp_extension", "numpy.load", "numpy.testing.", "numpy.f2py.", "pickle.",
    "_pickle.", "dill.", "cloudpickle.", "io.open", "_io.open", "io.FileIO", "_io.FileIO",
    "types.FunctionType", "types.CodeType",
)  # fmt: skip
_KNOWN_ROOTS = sys.stdlib_module_names | {
    *("torch", "timm", "torchvision", "numpy", "__builtin__", "copy_reg")
}


def read_pickle(path: Path) -> Any:
    """The content of a file of torch, weights only. Raises UserError if it is anything else."""
    check_file(path)
    _check_archive(path)
    try:
        # The files of MAE and TinyMIM carry their command line under "args".
        with torch.serialization.safe_globals([argparse.Namespace]), warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # of files that are then refused
            return torch.load(path, map_location="cpu", weights_only=True)
    except OSError as error:
        raise UserError(
            f"Can't read {path}: {reason_of(error)}; make it readable, or get it again."
        ) from error
    except Exception as error:  # bytes that are no pickle can make the unpickler raise anything
        raise UserError(_explain(path, error)) from error


def _check_archive(path: Path) -> None:
    """Refuse an archive whose records are far larger than the file: torch would inflate them."""
    if not zipfile.is_zipfile(path):
        return
    try:
        with zipfile.ZipFile(path) as archive:
            inflated = sum(info.file_size for info in archive.infolist())
    except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError) as error:
        raise UserError(_no_torch_file(path)) from error
    size = path.stat().st_size
    if inflated > _MAX_INFLATED * size + 16 * MIB:
        raise UserError(
            f"{path} has {size:,} bytes and unpacks to {inflated:,}, and torch does not compress "
            "its files; it is made to fill the memory, get the weights elsewhere."
        )


def _no_torch_file(path: Path) -> str:
    return f"Can't read {path} as a file of torch; it is damaged or no weights file, get it again."


def _explain(path: Path, error: Exception) -> str:
    """Why a file is not read, and the way to its weights where there is one."""
    try:
        program, is_script = _program_of(path)
    except (zipfile.BadZipFile, OSError, RuntimeError, ValueError, EOFError):
        return _no_torch_file(path)
    if is_script:
        return (
            f"{path} is a program of TorchScript, of which the weights alone are needed. If you "
            f"trust it, {_line(path, 'torch.jit.load(FILE).state_dict()')}"
        )
    called, words, is_dict = read_program(program)
    if bad := sorted(filter(_runs_code, called)):
        return (
            f"{path} tries to run code when it is opened ({_shown(bad)}), which no weights need; "
            "don't open it with anything, get the weights from someone you trust."
        )
    if not isinstance(error, pickle.UnpicklingError) or not called:
        return _no_torch_file(path)
    named = str(error).partition("Unsupported global: GLOBAL ")[2].split(" ")[0].rstrip(".")
    own = sorted(name for name in called if name.partition(".")[0] not in _KNOWN_ROOTS)
    modules = sorted(name for name in called if name.startswith("torch.nn.modules."))
    load = "torch.load(FILE, map_location='cpu', weights_only=False)"
    key = next((name for name in CONTAINERS if name in words), None) if is_dict else None
    if key is not None:
        load += f"['{key}']"
    if modules:
        what = f"holds a whole pickled model ({named or modules[0]}), of which the weights alone "
        what += "are needed and whose opening could run code"
        load += ".state_dict()"
    else:
        culprit = named or _shown(own)
        what = f"holds Python objects beside tensors{f' ({culprit})' if culprit else ''}, "
        what += "which could run code, so it is not read"
    where = f" where Python finds the code of {_shown(own)}" if own else ""
    other = f" (or another key than '{key}')" if key else ""
    return f"{path} {what}. If you trust it, {_line(path, load, where, other)}"


def _program_of(path: Path) -> tuple[bytes, bool]:
    """The pickle in a file, and whether the file is TorchScript's instead."""
    with open(path, "rb") as stream:
        if not zipfile.is_zipfile(path):
            return stream.read(_MAX_PROGRAM_BYTES), False
        with zipfile.ZipFile(stream) as archive:
            names = archive.namelist()
            inner = next((name for name in names if name.endswith("data.pkl")), None)
            is_script = any(name.endswith("constants.pkl") for name in names)
            program = archive.open(inner).read(_MAX_PROGRAM_BYTES) if inner else b""
            return program, is_script


def _line(path: Path, load: str, where: str = "", other: str = "") -> str:
    out = path.with_suffix(".weights.pth")
    load = load.replace("FILE", repr(str(path)))
    code = f"import torch; torch.save({load}, {str(out)!r})"
    return f'convert it once{where}: python -c "{code}"{other}, and pass {out.name} instead.'


def _shown(names: list[str]) -> str:
    return ", ".join(names[:3]) + (" and others" if len(names) > 3 else "")


def _runs_code(name: str) -> bool:
    root, _, rest = name.partition(".")
    if name.startswith(_BUILTINS):
        return rest in _RUN_NAMES
    return root in _RUNS or name.startswith(_RUN_STARTS)


def read_program(program: bytes) -> tuple[set[str], set[str], bool]:
    """What a pickle would call ("module.name"), the texts in it, and whether it is a dictionary.

    Nothing is run. What can't be read any more ends the list.
    """
    called: set[str] = set()
    words: set[str] = set()
    are_dicts: list[bool] = []
    stream = io.BytesIO(program)
    for _ in range(5):  # the old format is several in a row, of which the fourth is the content
        memo: dict[int, str | None] = {}
        pushed: list[str | None] = []
        first = ""
        try:
            for code, value, _ in pickletools.genops(stream):
                if code.name in ("PROTO", "FRAME"):
                    continue
                first = first or code.name
                if code.name in ("GLOBAL", "INST"):
                    called.add(str(value).replace(" ", "."))
                    pushed.append(None)
                elif code.name == "STACK_GLOBAL":
                    called.add(".".join(each or "?" for each in pushed[-2:]))
                    pushed.append(None)
                elif code.name in ("MEMOIZE", "BINPUT", "LONG_BINPUT", "PUT"):
                    memo[len(memo) if value is None else int(value)] = (pushed or [None])[-1]
                elif code.name in ("BINGET", "LONG_BINGET", "GET"):
                    pushed.append(memo.get(int(value)))
                else:
                    pushed.append(value if isinstance(value, str) else None)
                    words |= {value} if isinstance(value, str) else set()
        except (ValueError, TypeError, IndexError, OverflowError):
            break
        finally:
            are_dicts.append(first == "EMPTY_DICT")
    return called, words, are_dicts[3 if len(are_dicts) > 3 else 0]
