"""Flags and help texts: every command owns its flags, and a wrong one answers with the nearest right one."""

import difflib
import shutil
import textwrap
from collections.abc import Sequence
from types import ModuleType

from absl import flags as absl_flags

TRACEBACK = "traceback"
_REQUIRED = "must have a value other than None"
BUILT_IN = ("flagfile", "undefok")
ALSO = {"out_path": "output", "output_path": "output", "input_path": "input"}
"""RAVE's names, and the one name that every command understands."""


def new_flags(module: ModuleType) -> absl_flags.FlagValues:
    """The flags of a command, and those that every command has."""
    flags = absl_flags.FlagValues()
    module.define(flags)
    for name, other in ALSO.items():
        if name in flags and other not in flags:
            absl_flags.DEFINE_alias(other, name, flag_values=flags)
    absl_flags.DEFINE_bool(TRACEBACK, False, "show where in the code an error arose", flag_values=flags)
    return flags


def asks_for_help(words: Sequence[str]) -> bool:
    """True when a help flag stands among the words, before a lone ``--``."""
    words = list(words)
    if "--" in words:
        words = words[:words.index("--")]
    return any(word in ("-h", "-help", "--help", "--helpfull") for word in words)


def overview(commands: Sequence[tuple[str, str]]) -> str:
    """The text of ``rave_tools --help``."""
    width = max(len(name) for name, _ in commands)
    lines = ["rave_tools: audio models, trained here, played in realtime hosts", "",
             "usage: rave_tools COMMAND [flags]", ""]
    lines += [f"  {name:<{width}}  {text}" for name, text in commands]
    lines += ["", "rave_tools COMMAND --help shows the flags of a command; rave_tools --version the version."]
    return "\n".join(lines)


def command_help(name: str, module: ModuleType) -> str:
    """The text of ``rave_tools COMMAND --help``."""
    flags = new_flags(module)
    arguments = f" {module.ARGUMENTS}" if hasattr(module, "ARGUMENTS") else ""
    lines = [f"rave_tools {name}: {module.HELP}", "", f"usage: rave_tools {name}{arguments} [flags]", ""]
    width = min(100, shutil.get_terminal_size((100, 24)).columns)
    for flag in names(flags):
        lines += _flag_help(flags[flag], width)
    return "\n".join(lines)


def names(flags: absl_flags.FlagValues) -> list[str]:
    """The flags in the order of their definition, ``--traceback`` last."""
    built_in = {*BUILT_IN, TRACEBACK, *(other for name, other in ALSO.items() if name in flags)}
    own = [name for name in flags if name not in built_in and flags[name].name == name]
    return [*_by_definition(flags, own), TRACEBACK]


def _by_definition(flags: absl_flags.FlagValues, own: list[str]) -> list[str]:
    order = [flag.name for module in flags.flags_by_module_dict().values() for flag in module]
    return sorted(own, key=lambda name: order.index(name) if name in order else len(order))


def _flag_help(flag: absl_flags.Flag, width: int) -> list[str]:
    kind = flag.flag_type().replace("multi ", "")
    value = "" if flag.boolean else f" {_placeholder(flag, kind)}"
    short = f"-{flag.short_name}, " if flag.short_name else ""
    head = f"  {short}--{'[no]' if flag.boolean and flag.default else ''}{flag.name}{value}"
    text = (flag.help or "").partition(";\n    repeat this option")[0]
    choices = getattr(flag.parser, "enum_values", None)
    text = text.removeprefix(f"<{'|'.join(map(str, choices or ()))}>: ")
    notes = [" ".join(text.split()).rstrip(".") + "."]
    if flag.name in ALSO:
        notes.append(f"Also --{ALSO[flag.name]}.")
    if "multi" in flag.flag_type() and "several times" not in text:
        notes.append("May be given several times.")
    if any(_REQUIRED in validator.message for validator in flag.validators):
        notes.append("[required]")
    elif flag.default not in (None, False, "", []):
        notes.append(f"[default: {_default(flag)}]")
    body = textwrap.wrap(" ".join(note for note in notes if note), width - 8)
    return [head, *(f"        {line}" for line in body)]


def _placeholder(flag: absl_flags.Flag, kind: str) -> str:
    choices = getattr(flag.parser, "enum_values", None)
    return "|".join(map(str, choices)) if choices else {"int": "N", "float": "X"}.get(kind, "VALUE")


def _default(flag: absl_flags.Flag) -> str:
    return " ".join(map(str, flag.default)) if isinstance(flag.default, list) else str(flag.default)


def command_line(command: str, flags: absl_flags.FlagValues) -> list[str]:
    """The words that give these flags again, whoever typed them: the terminal, a script or another command."""
    words = ["rave_tools", command]
    for name in names(flags):
        flag = flags[name]
        if flag.present:
            values = flag.value if isinstance(flag, absl_flags.MultiFlag) else [flag.value]
            words += [_word(name, value) for value in values]
    return words


def _word(name: str, value: object) -> str:
    if isinstance(value, bool):
        return f"--{name}" if value else f"--no{name}"
    return f"--{name}={','.join(map(str, value)) if isinstance(value, list) else value}"


def flag_error(command: str, error: absl_flags.Error, flags: absl_flags.FlagValues) -> str:
    """One line for a wrong flag."""
    if isinstance(error, absl_flags.UnrecognizedFlagError):
        return f"rave_tools {command} has no flag --{error.flagname}.{_nearest(error.flagname, flags)}"
    message = str(error).replace("flag --", "--", 1).rstrip(".")
    if _REQUIRED in message:
        message = f"{message.partition('=')[0]} is required"
    return f"{message}. See rave_tools {command} --help."


def stray_argument(command: str, word: str, flags: absl_flags.FlagValues) -> str:
    """One line for a word that belongs to no flag."""
    return f"'{word}' belongs to no flag.{_nearest(word.lstrip('-'), flags)} See rave_tools {command} --help."


def _nearest(name: str, flags: absl_flags.FlagValues) -> str:
    name = name.partition("=")[0].replace("-", "_")
    known = names(flags)
    if name in known:
        return f" Did you mean --{name}?"
    for start in ("no_", "no"):
        if name.startswith(start) and name.removeprefix(start) in known:
            return f" Did you mean --no{name.removeprefix(start)}?"
    near = difflib.get_close_matches(name, known, n=2, cutoff=0.6)
    return f" Did you mean {' or '.join('--' + item for item in near)}?" if near else ""
