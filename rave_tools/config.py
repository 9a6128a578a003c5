"""Configurations: find the files, read them, say what is wrong with them, build what they describe.

The only module that knows gin. A configuration is parsed statement by statement, so that every error names its file and
line and the nearest valid name; the result is handed to gin as one text, and gin injects it.

    config = load(["v2", "causal"], ["CAPACITY = 32"])
    codec = config.build("CODEC")
    config.call(run.train, db_path="db")
"""

import copy
import io
import tokenize
import warnings
from collections.abc import Callable, Collection, Iterator, Sequence
from typing import Any

import gin
from gin import config_parser

from . import config_files, config_graph
from .config_reader import OVERRIDE, Bind, Import, Include, Reader, Statement
from .config_values import (
    MACRO,
    Binding,
    Key,
    Macro,
    Origin,
    Reference,
    Target,
    did_you_mean,
    is_literal,
    leaves,
    parameters_of,
    write,
)
from .errors import ConfigError, UserError

AUGMENTATION = "AUGMENTATION"
"""The macro that says what happens to training crops; the command builds it beside the entrance."""

N_SIGNAL, BATCH = "N_SIGNAL", "BATCH"
"""The macros that say which window and batch runs of a configuration take, where no flag says it."""

__all__ = ["Config", "ConfigError", "differences", "load", "statements"]


def load(names: Sequence[str], overrides: Sequence[str] = (), *, text: str | None = None,
         text_name: str = "the run's config.gin") -> "Config":
    """Read configurations; nothing is built.

    Args:
        names: files in order, each over the ones before; bare names are searched for.
        overrides: gin statements applied last, as ``CAPACITY = 32``.
        text: a saved configuration to start from, as a run keeps it.
        text_name: what to call that text in errors.

    Raises:
        ConfigError: a file, a module, a class, a parameter or a macro is unknown, or the syntax is wrong.
    """
    reader = Reader(_statements)
    if text is not None:
        reader.read_text(text, text_name, "saved")
    for name in names:
        reader.read_named(config_files.find(name))
    reader.check_order()
    for override in overrides:
        reader.read_override(override)
    config = Config(reader.bindings, reader.stages)
    config.check_macros()
    return config


def statements(text: str, name: str) -> list[Statement]:
    """What a gin text says, as plain data: nothing it names is imported, no name is resolved.

    Args:
        text: of any program's configuration.
        name: what to call it in errors.

    Raises:
        ConfigError: the text is no gin; says where.
    """
    return list(_statements(text, name, "foreign"))


class _Raw(config_parser.ParserDelegate):
    """Keeps references as plain data; they are resolved when the statement's place is known."""

    def configurable_reference(self, scoped_configurable_name: str, evaluate: bool) -> Reference:
        *scopes, selector = scoped_configurable_name.split("/")
        return Reference(tuple(scopes), selector, evaluate)

    def macro(self, macro_name: str) -> Macro:
        return Macro(macro_name)


def _statements(text: str, name: str, kind: str) -> Iterator[Statement]:
    """gin's statements in a text as plain data; syntax errors become one line."""
    line = 1
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", SyntaxWarning)
            for statement in config_parser.ConfigParser(io.StringIO(text), _Raw()):
                line = statement.location.line_num
                if isinstance(statement, config_parser.BindingStatement):
                    yield Bind(line, statement.scope, statement.selector, statement.arg_name, statement.value)
                elif isinstance(statement, config_parser.ImportStatement):
                    whole = not statement.is_from and not statement.alias
                    yield Import(line, statement.module, statement.bound_name(), whole)
                elif isinstance(statement, config_parser.IncludeStatement):
                    yield Include(line, statement.filename)
    except (SyntaxError, tokenize.TokenError) as error:
        line = getattr(error, "lineno", None) or line
        lines = text.splitlines()
        source = f": {lines[line - 1].strip()}" if line <= len(lines) else ""
        raise ConfigError(f"{Origin(name, line, kind)}: {_plain_words(str(error.args[0]))}{source}") from error


def _plain_words(message: str) -> str:
    message = message.splitlines()[0].rstrip(".")
    if "malformed" in message or "Unable to parse value" in message:
        return "the value cannot be read; write text in quotes, references as @module.Name, macros as %NAME"
    if "EOF in multi-line" in message:
        return "a bracket or a quote is not closed"
    return message


class Config:
    """A configuration that was read.

    Args:
        bindings: what is bound at the end, in order of writing.
        stages: (file, bindings at its end), in order of reading.
    """

    def __init__(self, bindings: dict[Key, Binding], stages: Sequence[tuple[str, dict[Key, Binding]]] = ()) -> None:
        self.bindings = bindings
        self.stages = tuple(stages)

    def call(self, function: Callable[..., Any], **given: Any) -> Any:
        """Call the one entrance with its bindings, and with what the caller gives, which wins.

        Raises:
            ConfigError: a binding is read by nothing, a required fact is missing, or a part cannot be built.
        """
        target = self._named(function)
        bound = {key.parameter: binding for key, binding in self.bindings.items()
                 if key.target.object is function and not key.scope and key.parameter not in given}
        parameters = parameters_of(function) or {}
        missing = [name for name, parameter in parameters.items()
                   if parameter.default is parameter.empty and name not in bound and name not in given]
        if missing:
            raise ConfigError(f"{target.path} needs {', '.join(missing)}, and no configuration binds "
                              f"{'it' if len(missing) == 1 else 'them'}: add a model such as --config v2.")
        self.check_unused(function, given)
        self._check_required([((), target)], given)
        self.activate()
        arguments = {name: self._argument(function, name) for name in bound}
        self._check_supplied()
        return function(**arguments, **given)

    def build_argument(self, function: Callable[..., Any], name: str) -> Any:
        """Build what is bound to one parameter of the entrance, without calling it.

        Raises:
            ConfigError: nothing is bound to it, a required fact is missing, or the part cannot be built.
        """
        target = self._named(function)
        if Key("", target, name) not in self.bindings:
            raise ConfigError(f"this configuration binds no {target.path}.{name}: add a model such as --config v2.")
        others = [parameter for parameter in parameters_of(function) or {} if parameter != name]
        self._check_required([((), target)], others)
        self.activate()
        built = self._argument(function, name)
        self._check_supplied()
        return built

    def build(self, macro_name: str) -> Any:
        """Build what a macro refers to, as ``CODEC = @rave.RAVE()``; a new object at every call.

        Raises:
            ConfigError: there is no such macro, a required fact is missing, or the part cannot be built.
        """
        self._macro_binding(macro_name)
        self._check_required([(tuple(macro_name.split("/")), MACRO)])
        self.activate()
        return self._evaluate(gin.get_configurable(f"{macro_name}/gin.macro"), macro_name, call=True)

    def macro(self, name: str) -> Any:
        """The value of a macro. Macros inside it are followed; a reference inside it is built.

        Raises:
            ConfigError: there is no such macro, or it is still required.
        """
        return self.build(name)

    def has_macro(self, name: str) -> bool:
        """True when a macro of this name is defined."""
        return Key(name, MACRO, "value") in self.bindings

    def check_macros(self) -> None:
        """Every macro that is referred to must be defined.

        Raises:
            ConfigError: one is not; with its place and the nearest names.
        """
        defined = {key.scope for key in self.bindings if key.is_macro}
        for binding in self.bindings.values():
            for leaf in leaves(binding.value):
                if isinstance(leaf, Macro) and not leaf.required and leaf.name not in defined:
                    raise ConfigError(f"{binding.origin}: {binding.key} uses %{leaf.name}, which is not defined."
                                      f"{did_you_mean(leaf.name, defined)}")

    def unread(self, function: Callable[..., Any], given: Collection[str] = ()) -> list[Binding]:
        """The bindings that a call of the function would not read, and should; see `config_graph.unread`."""
        return config_graph.unread(self.stages, self.bindings, self.roots(function), given)

    def roots(self, function: Callable[..., Any]) -> list[tuple[tuple[str, ...], Target]]:
        """Where reading begins: the entrance, and what the command reads for the data where there is such a macro."""
        given = [name for name in (AUGMENTATION, N_SIGNAL, BATCH) if self.has_macro(name)]
        return [((), self._named(function)), *(((name,), MACRO) for name in given)]

    def check_unused(self, function: Callable[..., Any], given: Collection[str] = ()) -> None:
        """Refuse bindings that have no effect: misspelt macros and scopes, and parts that are not in use.

        Args:
            function: the one entrance.
            given: names of its parameters that the caller supplies.

        Raises:
            ConfigError: lists every unread binding with its place and the nearest name.
        """
        silent = self.unread(function, given)
        if not silent:
            return
        read, used = config_graph.reachable(self.bindings, self.roots(function))

        def describe(binding: Binding) -> str:
            if binding.key.target.object is function and binding.key.parameter in given:
                return f"{binding.key} ({binding.origin}): the command sets it, use its flag."
            return (f"{binding.key} ({binding.origin})."
                    + config_graph.suggestion(binding, self.bindings, read, used))

        raise ConfigError(config_graph.explain(silent, used, describe))

    def activate(self) -> None:
        """Make this the configuration that gin injects, whatever was loaded before."""
        gin.clear_config()
        gin.parse_config(write(self.bindings))

    def text(self, *, origins: bool = True) -> str:
        """The merged text, every binding once, with the file and line that it comes from."""
        return write(self.bindings, comments=origins)

    def operative(self, function: Callable[..., Any] | None = None, **given: Any) -> str:
        """The text that alone rebuilds the same objects: macros, what the entrance reads, literals the caller gives.

        Args:
            function: the one entrance; without it, everything that is bound is written.
            given: what the caller supplies; values that a file can hold are written as bindings of the entrance.
        """
        if function is None:
            return write(self.bindings)
        target = self._named(function)
        read, _ = config_graph.reachable(self.bindings, self.roots(function), given)
        kept = {key: binding for key, binding in self.bindings.items() if key in read or key.is_macro}
        for name, value in given.items():
            if is_literal(value):
                key = Key("", target, name)
                kept[key] = Binding(key, value, Origin("the command line", 1, "saved"))
        return write(kept)

    def excerpt(self, *macros: str) -> str:
        """The text that alone rebuilds what some macros refer to, without anything else.

        Raises:
            ConfigError: there is no such macro.
        """
        for name in macros:
            self._macro_binding(name)
        read, _ = config_graph.reachable(self.bindings, [(tuple(name.split("/")), MACRO) for name in macros])
        return write({key: binding for key, binding in self.bindings.items() if key in read})

    def uses(self, function: Callable[..., Any], part: Any) -> bool:
        """True when a call of the function would build, or hand over, a certain class or function."""
        _, used = config_graph.reachable(self.bindings, [((), self._named(function))])
        return any(target.object is part for target in used)

    def settable(self, function: Callable[..., Any]) -> dict[Target, dict[str, Any]]:
        """Parameters of everything that the entrance uses and no binding sets, with their defaults."""
        read, used = config_graph.reachable(self.bindings, self.roots(function))
        bound = {(key.target, key.parameter) for key in read}
        free: dict[Target, dict[str, Any]] = {}
        for target in sorted(used - {MACRO, self._named(function)}, key=lambda item: item.selector):
            parameters = parameters_of(target.object) or {}
            defaults = {name: parameter.default for name, parameter in parameters.items()
                        if parameter.default is not parameter.empty and (target, name) not in bound}
            if defaults:
                free[target] = defaults
        return free

    def required(self, roots: list[tuple[tuple[str, ...], Target]], given: Collection[str] = ()) -> list[Binding]:
        """The bindings in reach that still say %gin.REQUIRED."""
        read, _ = config_graph.reachable(self.bindings, roots, given)
        return [self.bindings[key] for key in self.bindings if key in read
                and any(isinstance(leaf, Macro) and leaf.required for leaf in leaves(self.bindings[key].value))]

    def _check_required(self, roots: list[tuple[tuple[str, ...], Target]], given: Collection[str] = ()) -> None:
        for binding in self.required(roots, given):
            raise ConfigError(f"{binding.key} is required ({binding.origin}): "
                              f"give it with {OVERRIDE} '{binding.key} = ...'.")

    def _argument(self, function: Callable[..., Any], name: str) -> Any:
        value = gin.get_bindings(function, resolve_references=False)[name]
        return self._evaluate(value, f"{function.__qualname__}.{name}")

    def _named(self, function: Callable[..., Any]) -> Target:
        """The target of a function under the name that the files gave it."""
        return next((key.target for key in self.bindings if key.target.object is function), _target_of(function))

    def _check_supplied(self) -> None:
        """Refuse overrides of parameters that the code building a part supplies itself, so that gin ignored them."""
        built: dict[tuple[str, str], set[str]] = {}
        for statement in _statements(gin.operative_config_str(), "gin", "saved"):
            if isinstance(statement, Bind) and statement.parameter:
                selector = statement.selector.rpartition(".")[2]
                built.setdefault((statement.scope, selector), set()).add(statement.parameter)
        for key, binding in self.bindings.items():
            if key.is_macro or binding.origin.kind != "override":
                continue
            scope = key.scope.split("/") if key.scope else []
            read = [names for (where, name), names in built.items()
                    if name == key.target.path.rpartition(".")[2] and where.split("/")[:len(scope)] == scope]
            if read and not any(key.parameter in names for names in read):
                raise ConfigError(f"{binding.origin}: {key} has no effect: whatever builds {key.target.path} "
                                  f"supplies {key.parameter} itself.")

    def _macro_binding(self, name: str) -> Binding:
        key = Key(name, MACRO, "value")
        if key not in self.bindings:
            defined = [other.scope for other in self.bindings if other.is_macro]
            raise ConfigError(f"this configuration defines no {name}.{did_you_mean(name, defined)}")
        return self.bindings[key]

    def _evaluate(self, value: Any, name: str, *, call: bool = False) -> Any:
        """Let gin build a value; errors of the constructors become one line."""
        try:
            return value() if call else copy.deepcopy(value)
        except UserError:
            raise
        except (ValueError, TypeError, RuntimeError) as error:
            text, _, places = str(error).partition("\n  In call to configurable ")
            message = text.partition("\n  No values supplied by Gin")[0]
            where = places.partition(" ")[0].strip("'")
            inside = f" (building {where} for {name})" if where else f" (building {name})"
            if isinstance(error, TypeError) and " missing " in message and " required " in message:
                inside += ": no file binds that; is a mixin given on a model that it is not made for?"
            if "negative dimension" in message:
                below = [f"{key} = {binding.value!r} ({binding.origin})" for key, binding in self.bindings.items()
                         if isinstance(binding.value, int) and binding.value < 0]
                inside += f": a size must be positive; negative here: {', '.join(below) or 'none of the bindings'}"
            raise ConfigError(" ".join(message.split()) + inside) from error


def _target_of(function: Callable[..., Any]) -> Target:
    return Target(function.__module__, function.__qualname__, function)


def differences(before: Config, after: Config) -> list[str]:
    """What changed between two configurations, one line per binding."""
    lines = []
    for key in {**before.bindings, **after.bindings}:
        old, new = before.bindings.get(key), after.bindings.get(key)
        if old is None and new is not None:
            lines.append(f"{key} = {new.value!r} (new, {new.origin})")
        elif new is None and old is not None:
            lines.append(f"{key} = {old.value!r} (gone)")
        elif old is not None and new is not None and old.value != new.value:
            lines.append(f"{key} = {new.value!r} (was {old.value!r}; {new.origin})")
    return lines
