"""The command as a user types it: help, wrong words, errors and exit codes."""

import errno
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest
from absl import flags as absl_flags

from rave_tools import __version__
from rave_tools.cli import main as cli
from rave_tools.cli.usage import command_line
from rave_tools.errors import UserError

ROOT = Path(__file__).parent.parent.parent


def toy_command(**changes: object) -> ModuleType:
    module = ModuleType("toy")
    module.HELP = "does nothing, well"

    def define(flags: absl_flags.FlagValues) -> None:
        absl_flags.DEFINE_string("db_path", None, "folder of the database", required=True, flag_values=flags)
        absl_flags.DEFINE_integer("batch", 8, "rows of a batch", lower_bound=1, flag_values=flags)
        absl_flags.DEFINE_bool("lazy", False, "decode while training", flag_values=flags)
        absl_flags.DEFINE_enum("mode", "a", ["a", "b"], "which way", flag_values=flags)
        absl_flags.DEFINE_multi_string("config", ["v2"], "configurations", flag_values=flags)

    module.define = define
    module.run = lambda flags: 0
    for name, value in changes.items():
        setattr(module, name, value)
    return module


@pytest.fixture
def toy(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    module = toy_command()
    monkeypatch.setattr(cli, "COMMANDS", ("train", "export"))
    monkeypatch.setattr(cli, "load_command", lambda name: module)
    return module


def test_python_m_and_the_version() -> None:
    done = subprocess.run([sys.executable, "-m", "rave_tools", "--version"], capture_output=True, text=True, cwd=ROOT)
    assert (done.returncode, done.stdout.strip()) == (0, f"rave_tools {__version__}")


def test_help_lists_every_command(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["--help"]) == 0
    text = capsys.readouterr().out
    for name in cli.COMMANDS:
        assert f"\n  {name} " in text
    assert cli.main([]) == 0 and capsys.readouterr().out == text


@pytest.mark.parametrize("command", cli.COMMANDS)
def test_every_command_explains_its_flags(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main([command, "--help"]) == 0
    text = capsys.readouterr().out
    assert text.startswith(f"rave_tools {command}: ")
    assert f"usage: rave_tools {command}" in text and "--traceback" in text
    assert max(map(len, text.splitlines())) <= 120
    assert cli.main(["help", command]) == 0 and capsys.readouterr().out == text


def test_flags_reach_the_command(toy: ModuleType) -> None:
    seen = {}
    toy.run = lambda flags: seen.update(batch=flags["batch"].value, lazy=flags.lazy, config=flags.config) or 0
    assert cli.main(["train", "--db_path", "x", "--batch=3", "--lazy", "--config", "v1", "--config", "causal"]) == 0
    assert seen == {"batch": 3, "lazy": True, "config": ["v1", "causal"]}


def test_commands_own_their_flags(toy: ModuleType) -> None:
    assert cli.main(["train", "--db_path", "x"]) == cli.main(["train", "--db_path", "y"]) == 0
    assert "db_path" not in absl_flags.FLAGS


@pytest.mark.parametrize(("words", "message"), [
    (["trian"], "there is no command 'trian'. Did you mean train?"),
    (["dance"], "The commands are train, export."),
    (["train", "--db_path", "x", "--bach", "3"], "rave_tools train has no flag --bach. Did you mean --batch?"),
    (["train", "--db-path", "x"], "Did you mean --db_path?"),
    (["train", "--db_path", "x", "--no-lazy"], "Did you mean --nolazy?"),
    (["train"], "--db_path is required. See rave_tools train --help."),
    (["train", "--db_path", "x", "--batch", "many"], "--batch"),
    (["train", "--db_path", "x", "--batch", "0"], "--batch"),
    (["train", "--db_path", "x", "--mode", "c"], "should be one of"),
    (["train", "--db_path", "x", "batch"], "'batch' belongs to no flag. Did you mean --batch?"),
    (["train", "--db_path"], "--db_path"),
])
def test_wrong_usage_is_one_line_and_exit_code_2(toy: ModuleType, words: list[str], message: str,
                                                 capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(words) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ") and message in error and error.count("\n") == 1


def test_errors_a_person_can_mend_are_one_line_and_exit_code_1(toy: ModuleType,
                                                               capsys: pytest.CaptureFixture[str]) -> None:
    def run(flags: absl_flags.FlagValues) -> int:
        raise UserError("no sound in /tmp/x: put some there")

    toy.run = run
    assert cli.main(["train", "--db_path", "x"]) == 1
    assert capsys.readouterr().err == "error: no sound in /tmp/x: put some there\n"
    assert cli.main(["train", "--db_path", "x", "--traceback"]) == 1
    assert "Traceback" in capsys.readouterr().err


def test_a_file_that_the_system_refuses_is_named(toy: ModuleType, capsys: pytest.CaptureFixture[str]) -> None:
    toy.run = lambda flags: open("/no/such/file")  # noqa: SIM115
    assert cli.main(["train", "--db_path", "x"]) == 1
    assert capsys.readouterr().err == "error: /no/such/file: No such file or directory\n"
    assert cli.main(["train", "--db_path", "x", "--traceback"]) == 1
    assert "Traceback" in capsys.readouterr().err


def test_a_full_disk_needs_no_name(toy: ModuleType, capsys: pytest.CaptureFixture[str]) -> None:
    def run(flags: absl_flags.FlagValues) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    toy.run = run
    assert cli.main(["train", "--db_path", "x"]) == 1
    assert capsys.readouterr().err == "error: the disk is full (No space left on device); free some space\n"


def test_ctrl_c_in_a_real_process(tmp_path: Path) -> None:
    """Also while modules are still loading, there is one line and no traceback."""
    # A shell that starts jobs in the background has them ignore Ctrl-C; here it must count.
    code = ("import os, signal, rave_tools.cli.main as m;"
            "signal.signal(signal.SIGINT, signal.default_int_handler);"
            "m.load_command = lambda name: os.kill(os.getpid(), signal.SIGINT);"
            "raise SystemExit(m.main(['train']))")
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert (done.returncode, done.stderr) == (130, "error: interrupted\n")


def test_our_own_mistakes_keep_their_traceback(toy: ModuleType) -> None:
    toy.run = lambda flags: 1 // 0
    with pytest.raises(ZeroDivisionError):
        cli.main(["train", "--db_path", "x"])


def test_ctrl_c_is_130(toy: ModuleType, capsys: pytest.CaptureFixture[str]) -> None:
    def run(flags: absl_flags.FlagValues) -> int:
        raise KeyboardInterrupt

    toy.run = run
    assert cli.main(["train", "--db_path", "x"]) == 130
    assert capsys.readouterr().err == "error: interrupted\n"
    toy.INTERRUPTED = "; what was finished is kept"
    assert cli.main(["train", "--db_path", "x"]) == 130
    assert capsys.readouterr().err == "error: interrupted; what was finished is kept\n"


@pytest.mark.parametrize("name", ["out_path", "output_path"])
def test_output_is_understood_by_every_command(name: str, toy: ModuleType, capsys: pytest.CaptureFixture[str]) -> None:
    def define(flags: absl_flags.FlagValues) -> None:
        absl_flags.DEFINE_string(name, None, "a folder", required=True, flag_values=flags)
        absl_flags.DEFINE_multi_string("input_path", None, "folders", flag_values=flags)

    heard: list[object] = []
    toy.define = define
    toy.run = lambda flags: heard.append((flags[name].value, flags["input_path"].value, command_line("train", flags)))
    for words in (["--output", "x", "--input", "a", "--input=b"], [f"--{name}=x", "--input_path=a", "--input_path=b"]):
        assert cli.main(["train", *words]) == 0
    assert heard[0] == heard[1]
    assert heard[0] == (
        "x", ["a", "b"], ["rave_tools", "train", f"--{name}=x", "--input_path=a", "--input_path=b"]
    )  # fmt: skip
    assert cli.main(["train"]) == 2
    assert f"--{name} is required" in capsys.readouterr().err
    assert cli.main(["train", "--help"]) == 0
    text = capsys.readouterr().out
    assert "Also --output." in text and "\n  --output VALUE" not in text


def test_commands_say_what_ctrl_c_leaves() -> None:
    for name in ("encode", "export", "evaluate", "generate"):
        assert cli.load_command(name).INTERRUPTED.startswith("; ")


def test_words_without_a_flag_reach_a_command_that_takes_them(toy: ModuleType) -> None:
    toy.ARGUMENTS = "FILE..."
    seen: list[str] = []
    toy.run = lambda flags, arguments: seen.extend(arguments) or 0
    assert cli.main(["train", "a", "--db_path", "x", "b"]) == 0
    assert seen == ["a", "b"]


def test_a_reader_that_leaves_is_no_error() -> None:
    """``rave_tools configs show v2 | head -1`` ends without a complaint."""
    done = subprocess.run(f"{sys.executable} -m rave_tools configs list | head -1", shell=True, capture_output=True,
                          text=True, cwd=ROOT)
    assert done.stdout.startswith("configs/") and done.stderr == ""
