"""The command line: exit codes, one sentence per error with the nearest word, and speed."""

import os
import subprocess
import sys
from operator import itemgetter

import pytest
import tyro

from limbeck import __version__
from limbeck.cli import (
    _Announcing,
    _parse_named,
    main,
    parse,
    saying_what_is_loaded,
    take_option,
)
from limbeck.config import option_flags
from limbeck.errors import OfRank, UserError
from limbeck.help import overview
from limbeck.verbs import VERBS, config_class
from tests.recipes.runs import draw_classes


@pytest.fixture(scope="module")
def here(tmp_path_factory):
    """A working folder with ``photos``, ``notes.txt`` and an empty folder ``run``."""
    folder = tmp_path_factory.mktemp("here")
    draw_classes(folder / "photos", num_per_class=2)
    (folder / "notes.txt").write_text("no weights")
    (folder / "run").mkdir()
    return folder


def refused(capsys, *words):
    """What the command line says of bad input on standard error."""
    with pytest.raises(SystemExit) as caught:
        main(words)
    assert caught.value.code == 2
    shown = capsys.readouterr()
    assert shown.out == ""
    assert "Traceback" not in shown.err
    return shown.err


DISTILL = ("distill", "--data", "photos")
MISTAKES = [
    (("distil",), "There is no verb 'distil'. Did you mean 'distill'?"),
    (("--halp",), "There is no verb '--halp'."),
    (("distill", "--data", "phots"), "--data: phots does not exist. Did you mean 'photos'?"),
    (("distill", "--data", "phots/train"), "--data: phots does not exist. Did you mean 'photos'?"),
    (("distill", "--data", "photos/rad"), "photos/rad does not exist. Did you mean 'red'?"),
    (("distill",), "No images are named; pass --data FOLDER"),
    ((*DISTILL, "--student", "vit_tyni"), "no vision Transformer 'vit_tyni' in timm. "
     "Did you mean 'vit_tiny'?"),
    ((*DISTILL, "--teacher", "timm:vit_bse_patch16_224.mae"), "Did you mean 'vit_base_patch16_224"),
    ((*DISTILL, "--teacher", "timm:vit_base_patch16_224.mea"), "Did you mean 'mae'?"),
    ((*DISTILL, "--teacher", "tmm:vit_base_patch16_224"), "Did you mean 'timm'?"),
    ((*DISTILL, "--teacher", "note.txt"), "There is no file or folder note.txt. "
     "Did you mean 'notes.txt'?"),
    ((*DISTILL, "--method", "relatoin"), "no method 'relatoin'. Did you mean 'relation'?"),
    (DISTILL, "The method relation needs a teacher; name one, such as --teacher timm:"),
    ((*DISTILL, "--preset", "photos_vit_tny"), "Did you mean 'photos_vit_tiny'?"),
    ((*DISTILL, "--preset"), "--preset needs a value."),
    (("finetune", "--preset", "photos_vit_tiny"), "is for 'limbeck distill'"),
    (("evaluate", "--preset", "photos_vit_tiny"), "'limbeck evaluate' has no presets."),
    ((*DISTILL, "--train.epochs", "-1"), "limbeck: --train.epochs -1.0 is refused: input should"),
    ((*DISTILL, "--tain.epochs", "3"), "limbeck distill has no option --tain.epochs. "
     "Did you mean '--train.epochs'? 'limbeck distill --help' lists them all."),
    ((*DISTILL, "--epochs=3"), "no option --epochs. Did you mean '--train.epochs'?"),
    ((*DISTILL, "--train.base_lrr", "1"), "Did you mean '--optim.base-lr'?"),
    ((*DISTILL, "--crop.scale", "1", "0.2"), "limbeck: --crop.scale (1.0, 0.2) is refused: two"),
    (("finetune", "--data", "photos"), "No student is named; pass --student RUN_FOLDER"),
    (("evaluate", "--data", "photos"), "No student is named; pass --student RUN_FOLDER"),
    (("evaluate", "--data", "photos", "--student", "rn"), "Did you mean 'run'?"),
    (("doctor", "--data", "phots"), "--data: phots does not exist. Did you mean 'photos'?"),
    (("inspect",), "No file is named; run: limbeck inspect FILE."),
    (("inspect", "note.txt"), "note.txt does not exist. Did you mean 'notes.txt'?"),
    (("convert",), "A source and a file are needed; run: limbeck convert SOURCE OUT.pth."),
    (("convert", "rn", "a.pth"), "There is no file or folder rn. Did you mean 'run'?"),
    (("convert", "run", "notes.txt"), "notes.txt is no name of a weights file; let it end in .pth"),
    (("demo", "--seeds", "0"), "--seeds 0 is refused: input should be greater than 0."),
    (("tinymim",), "There is no verb 'tinymim'. TinyMIM is limbeck distill --method relation"),
    ((*DISTILL, "--method", "G2SD"), "no method 'G2SD'. G2SD is limbeck two-stage; its first"),
    ((*DISTILL, "--preset", "deit"), "DeiT's distillation is limbeck finetune --teacher"),
    (("compare", "--data", "photos", "--arms", "tiny-vit"), "TinyViT's distillation is limbeck st"),
    ((*DISTILL, "--train.global-batch-size", "9", "--train.accumulate-steps", "2"),
     "--train.global-batch-size 9 does not divide by --train.accumulate-steps 2."),
    ((*DISTILL, "--optim.head-lr-scale", "2"), "--optim.head-lr-scale has no effect without "
     "--optim.layer-decay; set one."),
    (("compare", "--data", "photos", "--tune.train.epochs", "-1"), "--tune.train.epochs -1.0 is"),
    (("finetune", "--data", "photos", "--student", "run", "--keep-head", "--head-index", "x"),
     "--keep-head and --head-index exclude each other"),
    (("distill", "--data", "photos/red/000.png", "photos/red/001.png"), "--data takes one place "
     "and got 2 (photos/red/000.png, photos/red/001.png, ...): has the shell"),
]  # fmt: skip


@pytest.mark.parametrize(("words", "message"), MISTAKES, ids=lambda value: " ".join(value)[:40])
def test_a_mistake_is_answered_in_one_line(capsys, monkeypatch, here, words, message):
    monkeypatch.chdir(here)
    said = refused(capsys, *words)
    assert said.startswith("limbeck: ")
    assert said.count("\n") == 1
    assert message in said


@pytest.mark.parametrize(
    ("words", "nearest"),
    [
        (("distill", "--datta", "photos"), "--data"),
        (("distill", "--train.epoch", "3"), "--train.epochs"),
        (("finetune", "--mix.mixup", "0.2"), "--mix.mixup-alpha"),
        (("distill", "--train.precision", "fp8"), "bf16"),
        (("distill", "--train.epochs", "many"), "--train.epochs"),
        (("evaluate", "--num-label", "5"), "--num-labels"),
    ],
)
def test_a_mistyped_option_names_the_nearest(capsys, words, nearest):
    assert nearest in refused(capsys, *words)


def test_debug_shows_the_error_itself(here, monkeypatch):
    monkeypatch.chdir(here)
    for words in (["distill", "--debug", "--data", "phots"], ["--debug", "distil"]):
        with pytest.raises(UserError):
            main(words)


@pytest.mark.parametrize("words", [[], ["-h"], ["--help"], ["help"]])
def test_help_lists_every_verb(capsys, words):
    main(words)
    shown = capsys.readouterr().out
    assert shown == overview() + "\n"
    for verb, entry in VERBS.items():
        assert verb in shown
        assert entry.summary in shown


def test_version(capsys):
    main(["--version"])
    assert capsys.readouterr().out == f"limbeck {__version__}\n"


@pytest.mark.parametrize(
    "words",
    [
        ["help", "convert", "layout"],
        ["convert", "help", "layout"],
        ["--help", "convert", "layout"],
        ["convert", "--help", "--layout"],
        ["convert", "-h", "layout", "--overwrite"],
        ["convert", "--num-heads", "3", "--help=layout"],
    ],
)
def test_help_is_a_word_too(capsys, monkeypatch, tmp_path, words):
    monkeypatch.chdir(tmp_path)
    main(words)
    shown = capsys.readouterr().out
    assert shown.startswith("usage: limbeck convert [options] SOURCE OUT\n")
    assert ("--overwrite" in shown) == ("--layout" in words)  # no topic: all options
    assert "mae-full: with its decoder" in shown


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("help", "help"), "There is no verb 'help'"),
        (("distill", "--tain.epochs", "3", "--help"), "Did you mean '--train.epochs'?"),
        (("distill", "--help", "relatoin"), "limbeck distill has no section, method or option "
         "'relatoin'. Did you mean 'relation'? 'limbeck distill --help' lists them."),
        (("distill", "--help", "epochs"), "Did you mean 'train.epochs'?"),
        (("distill", "--preset", "photos_vit_tny", "--help"), "Did you mean 'photos_vit_tiny'?"),
    ],
)  # fmt: skip
def test_a_mistake_beside_help_is_answered(capsys, words, message):
    said = refused(capsys, *words)
    assert message in said and said.count("\n") == 1


def test_help_shows_a_preset_s_values_and_the_chosen_method(capsys):
    main(["distill", "--preset", "mae_vit_tiny", "--help"])
    shown = " ".join(capsys.readouterr().out.split())
    assert "The defaults are those of the preset mae_vit_tiny." in shown
    assert "--train.epochs Passes over the training images (number above 0, default 400)" in shown
    assert "the method masked-pixel:" in shown and "--relation.softmax" not in shown
    main(["distill", "--preset", "mae_vit_tiny", "--method", "dino", "--help"])
    assert "the method dino:" in capsys.readouterr().out


def test_a_file_named_help_is_a_file(capsys, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "help").write_text("")
    assert "help" in refused(capsys, "inspect", "help")


@pytest.mark.parametrize(
    "words",
    [
        ["doctor", "segment", "--help", "data.masks"],
        ["help", "doctor", "segment", "data.masks"],
        ["doctor", "segment", "help", "data.masks"],
    ],
)
def test_a_verb_of_two_words(capsys, words):
    main(words)
    said = capsys.readouterr().out
    assert said.startswith("usage: limbeck doctor segment [options]") and "--masks" in said


def test_a_mistyped_second_word_is_answered(capsys):
    with pytest.raises(SystemExit):
        main(["doctor", "segmnt", "--data", "photos"])
    said = "is for distill, finetune, segment, detect, not 'segmnt'. Did you mean 'segment'?"
    assert said in capsys.readouterr().err


def test_doctor_distill_is_doctor(capsys):
    main(["doctor", "distill", "--help", "seed"])
    assert capsys.readouterr().out.startswith("usage: limbeck doctor [options]")


def test_doctor_takes_the_presets_of_distill(capsys, monkeypatch, here):
    monkeypatch.chdir(here)
    main(["doctor", "--data", "photos", "--preset", "photos_vit_tiny"])
    assert "do not fill a batch of 64" in capsys.readouterr().out


@pytest.mark.parametrize("verb", ["store-targets", "search"])
def test_of_a_preset_of_distill_others_take_what_they_have(verb, tmp_path):
    words = ["--data", "photos", "--preset", "photos_sparse_logit"]
    config = parse(verb, config_class(verb), words)
    assert config.student.name == "tiny_vit_5m" and config.crop.scale == (0.08, 1.0)
    mistyped = tmp_path / "mine.toml"
    mistyped.write_text('verb = "distill"\n[optimm]\nbase_lr = 1.0\n')
    with pytest.raises(UserError, match="Did you mean 'optim'"):
        parse(verb, config_class(verb), ["--preset", str(mistyped)])


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ((), 40),
        (("--train.epochs", "40"), 4),  # of 400
        (("--train.epochs=800",), 40),
        (("--train.epochs", "80", "--optim.warmup-epochs", "40"), 40),
        (("--train.epochs", "80", "--optim.warmup_epochs=2"), 2),
    ],
)
def test_fewer_epochs_than_a_preset_s_warm_up_in_proportion(caplog, words, expected):
    caplog.set_level("INFO", "limbeck")
    given = ["--preset", "mae_vit_tiny", *words]
    config = parse("distill", config_class("distill"), given)
    assert config.optim.warmup_epochs == expected
    assert caplog.messages == (
        ["--optim.warmup-epochs 4: the preset's 40, for 40 instead of its 400 epochs."]
        if expected == 4
        else []
    )


@pytest.mark.parametrize("verb", ["finetune", "evaluate", "inspect"])
def test_errors_of_running_code_exit_the_same_way(capsys, monkeypatch, here, verb):
    """Beyond the checks: a student that is an empty folder."""
    monkeypatch.chdir(here)
    words = {
        "finetune": ["--data", "photos", "--student", "./run", "--data.holdout-ratio", "0.5"],
        "evaluate": ["--data", "photos", "--student", "run", "--data.holdout-ratio", "0.5"],
        "inspect": ["run"],
    }
    said = refused(capsys, verb, *words[verb]).splitlines()
    assert said[-1].startswith("limbeck: ")
    assert "run" in said[-1]


def test_only_the_first_of_several_processes_speaks(capsys, monkeypatch, here):
    monkeypatch.chdir(here)
    words = ["doctor", "--data", "photos", "--train.global-batch-size", "2"]
    main(words)
    assert "The images are ready" in capsys.readouterr().out
    monkeypatch.setenv("RANK", "1")
    main(words)
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize(
    ("words", "value", "rest"),
    [
        (["--a", "1", "--preset", "x", "--b"], "x", ["--a", "1", "--b"]),
        (["--preset=x=y", "--b"], "x=y", ["--b"]),
        (["--b"], None, ["--b"]),
    ],
)
def test_take_option(words, value, rest):
    assert take_option(words, "--preset") == (value, rest)


def test_an_error_of_own_code_is_shown_with_its_place(capsys, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    draw_classes(tmp_path / "photos", num_per_class=4)
    (tmp_path / "broken_own.py").write_text("def build(**options):\n    return 1 / 0\n")
    words = ["distill", "--data", "photos", "--teacher", "broken_own:build", "--out", "run"]
    with pytest.raises(SystemExit) as caught:
        main([*words, "--train.precision", "fp32"])
    said = capsys.readouterr().err.splitlines()[-1]
    assert caught.value.code == 1 and "unexpected" not in said
    place = f"limbeck: {tmp_path / 'broken_own.py'}, line 2, in build: ZeroDivisionError: division"
    assert said.startswith(place) and said.endswith("That is your own code; --debug shows the "
                                                    "traceback.")  # fmt: skip


@pytest.mark.parametrize("verb", VERBS)
def test_the_quick_parser_finds_what_the_whole_one_does(monkeypatch, verb):
    words = {
        "distill": ["--data", "x", "--train.epochs", "3"],
        "two-stage": ["--data=x", "--specific.train.epochs", "3", "--no-measure-speed"],
        "evaluate": ["-s", "a", "b", "--corruptions.names", "fog", "--embed.pool", "cls"],
        "convert-targets": ["a", "b", "--num-classes", "7", "--data", "x"],
        "compare": ["--arms", "scratch", "dino", "--tune.views.scale", "0.5", "1"],
    }.get(verb, [])
    config = _parse_named(config_class(verb), words, None)
    monkeypatch.setattr("limbeck.cli._parse_named", lambda *_: None)
    assert config == parse(verb, config_class(verb), words)
    assert words == [] or config != config_class(verb)()


def test_options_are_those_of_the_task(capsys, here):
    words = ["two-stage", "--data", str(here / "photos"), "--task"]
    assert "There is no task 'segmnt'. Did you mean 'segment'?" in refused(capsys, *words, "segmnt")
    said = refused(capsys, *words, "segment", "--specific.head", "single")
    assert "limbeck two-stage --task segment has no option --specific.head." in said
    said = refused(capsys, *words, "segment", "--arms", "generic", "--specific.method", "pixel-kl")
    assert "--specific.method has no effect with --arms generic" in said
    assert "no option --data.masks" in refused(capsys, *words, "classify", "--data.masks", "x")
    assert "--task needs a value" in refused(capsys, *words)
    assert "has no option --task" in refused(capsys, "segment", "--task", "segment")


def test_ctrl_c_is_no_traceback(capsys, monkeypatch):
    def interrupted(words):
        raise KeyboardInterrupt

    monkeypatch.setattr("limbeck.cli.run", interrupted)
    with pytest.raises(SystemExit) as caught:
        main([])
    assert caught.value.code == 130
    assert capsys.readouterr().err == "limbeck: stopped.\n"


def imported(*words, cwd):
    """A finished ``python -m limbeck``, and all modules that it has imported."""
    code = (
        "import atexit, sys\n"
        "atexit.register(lambda: print('\\n', *sys.modules))\n"
        "from limbeck.cli import main\n"
        f"main({list(words)!r})"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=cwd,
        capture_output=True,
        text=True,
    )
    said, _, names = done.stdout.rpartition("\n ")
    return done, said.strip(), set(names.split())


def test_help_imports_next_to_nothing(here):
    done, said, modules = imported("--help", cwd=here)
    assert done.returncode == 0 and said == overview()
    # What a start costs is what it imports: no clock has to be read.
    assert not {"pydantic", "tyro", "numpy", "PIL", "sysconfig"} & modules
    ours = {name for name in modules if name.startswith("limbeck")}
    assert ours == {
        "limbeck",
        *(f"limbeck.{each}" for each in ("cli", "errors", "files", "help", "papers", "verbs")),
    }


@pytest.mark.parametrize(
    "words", [("--data", "phots"), ("--data", "photos", "--method", "relatin")]
)
def test_a_mistake_imports_options_alone(here, words):
    done, said, modules = imported("distill", *words, cwd=here)
    assert done.returncode == 2 and said == ""
    assert done.stderr.startswith("limbeck: ") and done.stderr.count("\n") == 1
    assert not {"torch", "timm", "numpy", "PIL", "rich"} & modules
    # Options, presets, checks, and nothing that works: what more there is costs every mistake.
    assert len({name for name in modules if name.startswith("limbeck")}) <= 36


def test_no_mistake_waits_for_torch(here):
    """All of ``MISTAKES`` in one new process that never imports torch."""
    code = (
        "import sys\n"
        "from limbeck.cli import main\n"
        f"for words in {[words for words, _ in MISTAKES]!r}:\n"
        "    try:\n"
        "        main(words)\n"
        "    except SystemExit as error:\n"
        "        assert error.code == 2, words\n"
        "    assert not {'torch', 'timm'} & set(sys.modules), words\n"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=here, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("limbeck: ") == len(MISTAKES)


def test_what_is_loaded_is_said_when_a_verb_asks_for_it(here):
    """Before the seconds that it takes, and not for who made a mistake."""
    command = [sys.executable, "-m", "limbeck", "inspect"]
    said = [
        subprocess.run([*command, name], cwd=here, capture_output=True, text=True).stderr
        for name in ("notes.txt", "nowhere.pth")
    ]
    assert said[0].startswith("limbeck inspect: loading PyTorch ...\n")
    assert "loading" not in said[1]


def test_only_who_loads_it_says_so(caplog):
    with caplog.at_level("INFO", "limbeck"), saying_what_is_loaded("distill"):
        pass  # torch is here already
    finder = _Announcing("limbeck distill: loading PyTorch ...")
    sys.meta_path.insert(0, finder)
    with caplog.at_level("INFO", "limbeck"):
        assert finder.find_spec("json", None) is None and finder in sys.meta_path
        assert finder.find_spec("torch", None) is None
    assert finder not in sys.meta_path
    assert caplog.messages == ["limbeck distill: loading PyTorch ..."]


def test_an_unexpected_error_is_one_line_too(capsys, monkeypatch):
    monkeypatch.setattr("limbeck.cli.run", itemgetter("name"))  # no frame of anybody's file
    with pytest.raises(SystemExit) as caught:
        main(["distill"])
    assert caught.value.code == 1
    said = capsys.readouterr().err
    assert said.startswith("limbeck: unexpected TypeError: list indices") and "--debug" in said
    with pytest.raises(TypeError):
        main(["distill", "--debug"])


def test_one_of_several_processes_speaks(capsys, monkeypatch):
    monkeypatch.setenv("RANK", "1")
    with pytest.raises(SystemExit) as caught:
        main(["distil"])
    assert caught.value.code == 2
    assert capsys.readouterr().err == ""


def test_what_a_rank_says_is_spelt_as_the_command_line_is(capsys, monkeypatch, here):
    def fail(config):
        raise OfRank(UserError("train.global_batch_size 3 is odd."), 1, speaks=True)

    monkeypatch.chdir(here)
    monkeypatch.setattr("limbeck.recipes.look.doctor.doctor", fail)
    said = refused(capsys, "doctor", "--data", "photos")
    assert said == "limbeck: rank 1: --train.global-batch-size 3 is odd.\n"


def test_any_text_can_be_printed_on_any_console(tmp_path):
    """Old consoles know ASCII alone, and old disks have names that are no UTF-8."""
    odd = os.fsdecode(os.fsencode(tmp_path) + b"/caf\xe9 \xe6\xb0\xb4 \x1b[31m")
    draw_classes(tmp_path / "photos", num_per_class=6)
    os.rename(tmp_path / "photos", odd)
    words = ["doctor", "--data", odd, "--train.global-batch-size", "4", "--data.num-workers", "0"]
    environment = os.environ | {"PYTHONIOENCODING": "ascii:strict", "LC_ALL": "C"}
    done = subprocess.run(
        [sys.executable, "-m", "limbeck", *words], capture_output=True, env=environment
    )
    assert done.returncode == 0, done.stderr
    assert b"caf\\udce9 \\u6c34 \\x1b[31m" in done.stderr and b"images are ready" in done.stdout
    gone = [sys.executable, "-m", "limbeck", "inspect", odd + "/gone"]
    done = subprocess.run(gone, capture_output=True, env=environment)
    assert done.returncode == 2 and b"caf\\udce9 \\u6c34" in done.stderr


@pytest.mark.filterwarnings("ignore:get_parser:DeprecationWarning")
@pytest.mark.parametrize("verb", VERBS)
def test_the_options_that_are_not_refused_are_those_of_the_parser(verb):
    kind = config_class(verb)
    parser = tyro.extras.get_parser(kind, config=(tyro.conf.AvoidSubcommands,))
    flags = {flag for action in parser._actions for flag in action.option_strings}
    assert flags - {"-h", "--help"} == {*option_flags(kind)} - positional(parser)


def positional(parser):
    """The names that an argument by place has among the options."""
    return {f"--{action.dest}" for action in parser._actions if not action.option_strings}
