"""``rave_tools configs``: what configurations there are, what one says, and whether it holds."""

import textwrap
from collections.abc import Callable, Sequence
from typing import Any

from absl import flags as absl_flags

from .. import config, config_files
from ..errors import ConfigError

HELP = "list the configurations, show what one says, or check that it can be built"
ARGUMENTS = "list | show FILE... | check FILE..."
ENTRANCE_MODULE, ENTRANCE_NAME = "rave_tools.training.run", "train"


def define(flags: absl_flags.FlagValues) -> None:
    """Define the flags of the command."""
    absl_flags.DEFINE_multi_string("override", [], "a gin binding applied last, as 'CAPACITY = 32'", flag_values=flags)
    absl_flags.DEFINE_bool("defaults", True, "show also what can still be set, with its default", flag_values=flags)


def run(flags: absl_flags.FlagValues, arguments: Sequence[str]) -> int:
    """Run the action that the first word names."""
    action, *files = arguments or ["list"]
    overrides: list[str] = flags["override"].value or []
    if action == "list":
        print(listing())
        return 0
    if action not in ("show", "check"):
        raise ConfigError(f"rave_tools configs knows list, show and check, not '{action}'.")
    if not files:
        raise ConfigError(f"rave_tools configs {action} needs a file, as: rave_tools configs {action} v2")
    if action == "show":
        print(show(files, overrides, defaults=bool(flags["defaults"].value)), end="")
        return 0
    print(check(files, overrides))
    return 0


def listing() -> str:
    """Every shipped configuration by folder, with the first line of its letter-head."""
    files = config_files.shipped_files()
    root = config_files.shipped_folder()
    width = max((len(path.stem) for path in files), default=0)
    lines: list[str] = []
    for folder in sorted({path.parent for path in files}):
        lines += ["", f"{folder.relative_to(root.parent)}/"]
        lines += [f"  {path.stem:<{width}}  {config_files.description(path)}".rstrip()
                  for path in files if path.parent == folder]
    return "\n".join(lines).lstrip("\n")


def show(files: Sequence[str], overrides: Sequence[str] = (), *, defaults: bool = True) -> str:
    """The merged text with the place of every binding, then the codec's latency and what can still be set."""
    loaded = config.load(files, overrides)
    if overrides and any(key.target.object is entrance() for key in loaded.bindings):
        loaded.check_unused(entrance(), ["db_path"])
    text = loaded.text() + _latency(loaded)
    free = loaded.settable(entrance()) if defaults else {}
    if not free:
        return text
    lines = ["", "# What can still be set, with its default:"]
    for target, parameters in free.items():
        lines.append(f"# {target.selector}")
        lines += [f"#     {name} = {textwrap.shorten(_default(value), 90)}" for name, value in parameters.items()]
    return text + "\n".join(lines) + "\n"


def _latency(loaded: config.Config) -> str:
    """A comment with the delay of the streaming codec; nothing where the files describe none, as a mixin."""
    if not loaded.has_macro("CODEC"):
        return ""
    from ..training.summary import latency_report

    try:
        report = latency_report(loaded.build("CODEC"))
    except ConfigError as error:
        report = f"Latency: unknown, the codec cannot be built: {' '.join(str(error).split())}"
    return f"\n# {report}\n"


def _default(value: Any) -> str:
    return getattr(value, "__qualname__", None) or repr(value)


def check(files: Sequence[str], overrides: Sequence[str] = ()) -> str:
    """Read, look for bindings that nothing reads, and build the model.

    Raises:
        ConfigError: the first thing that is wrong.
    """
    loaded = config.load(files, overrides)
    function = entrance()
    if not any(key.target.object is function for key in loaded.bindings):
        raise ConfigError(f"{' '.join(files)} binds nothing of {ENTRANCE_NAME}: it is a mixin; "
                          f"check it on a model, as: rave_tools configs check v2 {files[-1]}")
    loaded.check_unused(function, ["db_path"])
    built = loaded.build_argument(function, "wrapper")
    parameters = sum(parameter.numel() for parameter in built.parameters())
    return f"{' '.join(files)}: fine; {len(loaded.bindings)} bindings, {parameters:,} parameters"


def entrance() -> Callable[..., Any]:
    """The one function that a training configuration calls."""
    import importlib

    return getattr(importlib.import_module(ENTRANCE_MODULE), ENTRANCE_NAME)
