"""The ``rave_tools`` command: find the subcommand, read its flags, run it, turn errors into one line.

Heavy modules load inside a subcommand's ``run``, so that ``--help`` answers at once.
"""

import difflib
import errno
import importlib
import logging
import os
import sys
import traceback
from collections.abc import Sequence
from types import ModuleType

from absl import flags as absl_flags

from .. import __version__
from ..errors import UserError
from . import usage

COMMANDS = ("preprocess", "train", "export", "encode", "generate", "evaluate", "import", "doctor", "configs", "demo")
MODULES = {"import": "import_run"}
"""Commands whose name is no name for a module."""

EXIT_ERROR, EXIT_USAGE, EXIT_INTERRUPTED, EXIT_PIPE = 1, 2, 130, 141


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line.

    Args:
        argv: the words after the program's name; those of the process if None.

    Returns:
        The exit code: 0, or 1 for an error a person can mend, 2 for wrong usage, 130 for Ctrl-C.
    """
    words = list(sys.argv[1:] if argv is None else argv)
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s: %(message)s")
    try:
        code = _dispatch(words)
        sys.stdout.flush()
        return code
    except KeyboardInterrupt:
        return _fail("interrupted", EXIT_INTERRUPTED)
    except BrokenPipeError:
        # The reader (head, less) has gone; nothing is wrong, but Python would complain once more at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return EXIT_PIPE


def load_command(name: str) -> ModuleType:
    """The module of a subcommand: HELP, define(flags), run(flags).

    It may have ARGUMENTS, if it takes words without a flag, and INTERRUPTED, which says what Ctrl-C leaves behind.
    """
    return importlib.import_module(f".{MODULES.get(name, name)}", __package__)


def _dispatch(words: list[str]) -> int:
    if not words or words[0] in ("-h", "--help", "help"):
        return _help(words[1:])
    if words[0] in ("--version", "-V", "version"):
        print(f"rave_tools {__version__}")
        return 0
    command, *rest = words
    if command not in COMMANDS:
        near = difflib.get_close_matches(command, COMMANDS, n=1, cutoff=0.5)
        hint = f"Did you mean {near[0]}?" if near else f"The commands are {', '.join(COMMANDS)}."
        return _fail(f"there is no command '{command}'. {hint}", EXIT_USAGE)
    return _run(command, load_command(command), rest)


def _help(words: Sequence[str]) -> int:
    if words and words[0] in COMMANDS:
        print(usage.command_help(words[0], load_command(words[0])))
    else:
        print(usage.overview([(name, load_command(name).HELP) for name in COMMANDS]))
    return 0


def _run(command: str, module: ModuleType, words: list[str]) -> int:
    if usage.asks_for_help(words):
        print(usage.command_help(command, module))
        return 0
    flags = usage.new_flags(module)
    try:
        arguments = list(flags([command, *words])[1:])
        if arguments and not hasattr(module, "ARGUMENTS"):
            return _fail(usage.stray_argument(command, arguments[0], flags), EXIT_USAGE)
    except absl_flags.Error as error:
        return _fail(usage.flag_error(command, error, flags), EXIT_USAGE)
    try:
        return int((module.run(flags, arguments) if hasattr(module, "ARGUMENTS") else module.run(flags)) or 0)
    except KeyboardInterrupt:
        return _fail(f"interrupted{getattr(module, 'INTERRUPTED', '')}", EXIT_INTERRUPTED)
    except UserError as error:
        return _mendable(str(error), flags)
    except BrokenPipeError:
        raise
    except OSError as error:
        # What the system refuses about a named file is for the person; anything else is a mistake of ours.
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            return _mendable(f"the disk is full ({error.filename or error.strerror}); free some space", flags)
        if error.filename is None:
            raise
        return _mendable(f"{error.filename}: {error.strerror or error}", flags)


def _mendable(message: str, flags: absl_flags.FlagValues) -> int:
    if flags[usage.TRACEBACK].value:
        traceback.print_exc()
    return _fail(message, EXIT_ERROR)


def _fail(message: str, code: int) -> int:
    print(f"error: {message}", file=sys.stderr)
    return code
