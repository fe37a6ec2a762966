"""The command line: verbs to recipes, and errors to one sentence. Nothing else."""

import io
import logging
import os
import re
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import field, fields, is_dataclass, make_dataclass
from itertools import takewhile
from typing import Any, get_type_hints

from limbeck.errors import CutError, OfRank, UserError, did_you_mean, explain, own_place
from limbeck.files import printable
from limbeck.papers import of_paper
from limbeck.verbs import VERBS, config_class, function_of, recipe_of

HELP = ("-h", "--help")


ONE_PLACE = ("--data", "--data.root", "--data.eval-root", "--unlabelled", "--teacher")
"""Options after which stray names are a pattern's."""
TWO_WORDS = {"doctor distill": "doctor"} | {verb: verb for verb in VERBS if " " in verb}


def main(args: Sequence[str] | None = None) -> None:
    """Entry point of the command ``limbeck``; exits with 0, 1 (run failed) or 2 (bad input)."""
    let_all_be_written()
    words = list(sys.argv[1:] if args is None else args)
    is_debug = "--debug" in words
    words = [word for word in words if word != "--debug"]
    try:
        run(words)
    except BrokenPipeError:
        sys.exit(1)
    except (Exception, KeyboardInterrupt) as error:
        if is_debug:
            raise
        error = of_rank(error)
        speaks = error.speaks if isinstance(error, OfRank) else is_main_rank()
        if speaks:  # the others met the same
            print(printable(f"limbeck: {describe(error)}"), file=sys.stderr)
        if isinstance(error, CutError):
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(exit_code(error))
        sys.exit(exit_code(error))


def describe(error: BaseException) -> str:
    """An error in one sentence."""
    if isinstance(error, OfRank):
        text = describe(error.cause)
        return text if error.rank == 0 else f"rank {error.rank}: {text}"
    if isinstance(error, UserError):
        return str(error)
    if isinstance(error, KeyboardInterrupt):
        return "stopped."
    if own_place(error):
        return f"{explain(error)}. That is your own code; --debug shows the traceback."
    return (
        f"unexpected {explain(error)}. This should not happen; "
        "run again with --debug for the traceback and report it."
    )


def exit_code(error: BaseException) -> int:
    """2 for bad input, 130 for Ctrl-C, 1 for a failed run."""
    if isinstance(error, UserError):
        return error.exit_code
    return 130 if isinstance(error, KeyboardInterrupt) else 1


def of_rank(error: BaseException) -> BaseException:
    """Of an error that one of torchrun's processes met before the others were there, an OfRank."""
    if isinstance(error, OfRank | KeyboardInterrupt) or "WORLD_SIZE" not in os.environ:
        return error
    from limbeck.engine.distributed import told_by_one

    return told_by_one(error) or error


def is_main_rank() -> bool:
    """Whether this is the one of torchrun's processes that speaks."""
    return os.environ.get("RANK", "0") == "0"


def run(words: list[str]) -> None:
    """Run one command line; raises UserError for bad input."""
    words = _as_help(_with_two_words(words))
    if not words or words[0] in HELP:
        from limbeck.help import overview

        print(overview())
        return
    if words[0] == "--version":
        from limbeck import __version__

        print(f"limbeck {__version__}")
        return
    name, *rest = words
    check_pattern(name, rest)
    task, rest = take_task(name, rest)
    kind, work, report = called(name, task)
    try:
        show_log(logging.INFO if is_main_rank() else logging.WARNING)
        if any(word in HELP for word in rest):
            print(printable(verb_help(name, kind, rest)))
            return
        config = parse(name, kind, rest)
        with saying_what_is_loaded(name):
            result = work(config)
    except UserError as error:
        from limbeck.config import as_flags

        for told in {error, error.cause if isinstance(error, OfRank) else error}:
            if isinstance(told, UserError):
                told.args = (as_flags(str(told), kind, rest), *told.args[1:])
        raise
    if is_main_rank():  # a run's files may not lie where the others are
        print(printable(report(result)))
    if name in VERBS and VERBS[name].can_find_problems and result.problems:
        sys.exit(1)


def called(name: str, task: str | None) -> tuple[type, Callable[[Any], Any], Callable[[Any], str]]:
    """A verb's options class, of the task, its function, and what reports its result.

    One of the user's own is module:function, whose one argument is of the options class.
    """
    if name in VERBS:
        module = recipe_of(name)
        return (
            config_class(name, task),
            getattr(module, function_of(name)),
            module.report,
        )
    if ":" not in name:
        raise UserError(
            f"There is no verb '{name}'.{of_paper(name) or did_you_mean(name, VERBS)} "
            f"Verbs: {', '.join(VERBS)}."
        )
    from limbeck.config import import_own

    work = import_own(name, "verb")
    try:
        hints = get_type_hints(work) if callable(work) else {}
    except Exception as error:  # what an annotation names may not be there
        raise UserError(
            f"verb '{name}': its annotations can't be read: {explain(error)}"
        ) from error
    kinds = [hint for argument, hint in hints.items() if argument != "return"]
    if len(kinds) != 1 or not is_dataclass(kinds[0]):
        raise UserError(
            f"verb '{name}': that is no function of one options class, such as "
            "examples/own_training.py has."
        )
    return kinds[0], work, getattr(sys.modules[work.__module__], "report", str)


def _with_two_words(words: list[str]) -> list[str]:
    """A verb of two words is one of the words, whether it comes first or is asked help of."""
    for place in (0, 1):
        if name := TWO_WORDS.get(" ".join(words[place : place + 2])):
            return [*words[:place], name, *words[place + 2 :]]
    seconds = [verb.partition(" ")[2] for verb in TWO_WORDS if verb.split(" ")[:1] == words[:1]]
    if seconds and words[1:2] and not words[1].startswith("-") and words[1] != "help":
        raise UserError(
            f"limbeck {words[0]} is for {', '.join(seconds)}, not '{words[1]}'."
            f"{did_you_mean(words[1], seconds)}"
        )
    return words


def take_task(name: str, words: list[str]) -> tuple[str | None, list[str]]:
    """The task that the words name, of a verb with several, and the other words."""
    if not (tasks := VERBS[name].tasks if name in VERBS else {}):
        return None, words
    task, words = take_option(words, "--task")
    if task not in (None, *tasks):
        raise UserError(
            f"There is no task '{task}'.{did_you_mean(task, tasks)} Tasks: {', '.join(tasks)}."
        )
    return task, words


def _as_help(words: list[str]) -> list[str]:
    """``limbeck help VERB TOPIC`` and ``limbeck VERB help TOPIC`` are ``VERB --help TOPIC``."""
    words = [part for each in words for part in re.split(r"(?<=^--help)=", each, maxsplit=1)]
    if words and words[0] in ("help", *HELP):
        return [*words[1:2], "--help", *words[2:]]
    if words[1:2] == ["help"] and len(words) < 4 and not os.path.exists("help"):
        return [words[0], "--help", *words[2:]]
    return words


def check_pattern(name: str, words: Sequence[str]) -> None:
    """Raise UserError for a pattern that the shell has turned into many names."""
    for place, word in enumerate(words):
        more = list(takewhile(lambda each: not each.startswith("-"), words[place + 1 :]))
        if word in ONE_PLACE and len(more) > 1 and all(map(os.path.exists, more)):
            raise UserError(
                f"{word} takes one place and got {len(more)} ({more[0]}, {more[1]}, ...): has the "
                "shell filled in a pattern such as *.jpg? Name the folder, such as limbeck "
                f"{name} {word} {os.path.dirname(more[0]) or '.'}, which is read with all that "
                "is in it."
            )


@contextmanager
def saying_what_is_loaded(verb: str) -> Iterator[None]:
    """Say that PyTorch is being loaded, for seconds, when the verb asks for it, but not before."""
    if "torch" in sys.modules:
        yield
        return
    finder = _Announcing(f"limbeck {verb}: loading PyTorch ...")
    sys.meta_path.insert(0, finder)
    try:
        yield
    finally:
        if finder in sys.meta_path:
            sys.meta_path.remove(finder)


class _Announcing:
    """A finder of modules that finds none: it is only asked first."""

    def __init__(self, text: str) -> None:
        self.text = text

    def find_spec(self, fullname: str, path: object, target: object = None) -> None:
        """Called for each module that is not loaded yet."""
        if fullname == "torch":
            sys.meta_path.remove(self)
            logging.getLogger("limbeck").info(self.text)


def verb_help(name: str, kind: type, words: list[str]) -> str:
    """The help of a verb, of the topic behind --help, with a preset's values as defaults."""
    from limbeck.help import help_of

    place = next(place for place, word in enumerate(words) if word in HELP)
    topic = "".join(each for each in words[place + 1 : place + 2] if not each.startswith("-"))
    words = words[:place] + words[place + 1 + bool(topic) :]
    preset, _ = take_option(words, "--preset")
    method, _ = take_option(words, "--method")
    default, words = start_of(name, kind, words)
    check_options(name, kind, words)
    config = kind() if default is None else default
    return help_of(name, config, topic, method or "", preset or "")


def start_of(name: str, kind: type, words: list[str]) -> tuple[object | None, list[str]]:
    """The config of the preset that the words name, if they do; and the other words."""
    from limbeck.config import from_plain, read_preset

    of_verb = VERBS[name].presets if name in VERBS else None
    preset, words = take_option(words, "--preset")
    if preset is not None and of_verb is None:
        raise UserError(f"'limbeck {name}' has no presets.")
    values = read_preset(preset, of_verb) if preset and of_verb else {}
    if values and of_verb not in (name, None):
        # Another verb's preset: sound as a whole, and of it what this verb has as well.
        from_plain(config_class(of_verb), values, f"preset {preset}")
        own = {each.name for each in fields(kind)}
        values = {key: value for key, value in values.items() if key in own}
    return from_plain(kind, values, f"preset {preset}") if values else None, words


def parse(name: str, kind: type, words: list[str]) -> object:
    """The config of a verb: its defaults, then a preset, then the command line."""
    import tyro

    from limbeck.engine.options import scale_warmup

    default, words = start_of(name, kind, words)
    check_options(name, kind, words)
    config = _parse_named(kind, words, default)
    if config is None:
        options = (tyro.conf.AvoidSubcommands,)
        config = tyro.cli(kind, prog=f"limbeck {name}", args=words, default=default, config=options)
    return config if default is None else scale_warmup(config, default, words)


def check_options(name: str, kind: type, words: Sequence[str]) -> None:
    """Raise UserError for an option that the verb does not have, before any parser is built."""
    from limbeck.config import option_flags

    if name in VERBS and VERBS[name].tasks:
        name = f"{name} --task {vars(kind)['task']}"
    flags = [*option_flags(kind), "--help"]
    for word in words:
        option = word.partition("=")[0].replace("_", "-")
        if option.startswith("--") and option not in flags:
            bare = [flag[2:] for flag in flags if flag.startswith("--")]
            same = [each for each in bare if each.endswith(f".{option[2:]}")]
            longer = [each for each in bare if each.startswith(option[2:])]
            guess = did_you_mean(option[2:], same[:1] or longer or bare).replace("'", "'--", 1)
            raise UserError(
                f"limbeck {name} has no option {option}.{guess} "
                f"'limbeck {name} --help' lists them all."
            )


def _parse_named(kind: type, words: list[str], default: object) -> object:
    """The config, by a parser of no other sections than the words name.

    A verb has some hundred options more, whose parsers took most of the time to a mistake's answer.
    None where anything does not fit: the whole parser then says what.
    """
    import typing

    import tyro

    named = {word[2:].partition("=")[0].partition(".")[0] for word in words if word[:2] == "--"}
    named = {each.replace("-", "_") for each in named}
    hints = typing.get_type_hints(kind, include_extras=True)
    start = {each.name: getattr(default, each.name, each.default) for each in fields(kind)}
    shown = [
        (name, hints[name], field(default=value))
        for name, value in start.items()
        if name in named or not is_dataclass(value)
    ]
    part = make_dataclass(kind.__name__, shown, frozen=True, kw_only=True)
    try:
        found = tyro.cli(
            part, args=words, config=(tyro.conf.AvoidSubcommands,), console_outputs=False
        )
    except SystemExit:
        return None
    result: object = kind(**start | vars(found))
    return result


def take_option(words: list[str], option: str) -> tuple[str | None, list[str]]:
    """Take ``option VALUE`` or ``option=VALUE`` out of the words."""
    for place, word in enumerate(words):
        if word.startswith(f"{option}="):
            return word.partition("=")[2], words[:place] + words[place + 1 :]
        if word == option:
            if place + 1 == len(words):
                raise UserError(f"{option} needs a value.")
            return words[place + 1], words[:place] + words[place + 2 :]
    return None, words


def let_all_be_written() -> None:
    """Standard output and error write what their encoding does not have as escapes."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


class _Plain(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        return printable(record.getMessage())


def show_log(level: int) -> None:
    """Show the package's notes from a level on, on standard error."""
    logger = logging.getLogger("limbeck")
    if not logger.handlers:
        handler = logging.StreamHandler()
        handler.setFormatter(_Plain())
        logger.addHandler(handler)
    logger.setLevel(level)
