"""Reading configurations: follow includes, resolve names, check parameters, keep the place of every binding."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

from . import config_files, migrations
from .config_values import (
    MACRO,
    Binding,
    Key,
    Origin,
    Reference,
    Target,
    did_you_mean,
    import_module,
    map_leaves,
    parameters_of,
    resolve,
)
from .errors import ConfigError

OVERRIDE = "--override"
DYNAMIC = "__gin__.dynamic_registration"


@dataclass(frozen=True)
class Statement:
    """Something a configuration says, at a line counted from 1."""

    line: int


@dataclass(frozen=True)
class Include(Statement):
    """``include "name"``."""

    name: str


@dataclass(frozen=True)
class Import(Statement):
    """An import: the module, the name it binds, and whether that name is the module's top package."""

    module: str
    bound: str
    whole: bool


@dataclass(frozen=True)
class Bind(Statement):
    """``scope/selector.parameter = value``; without parameter, the selector is a macro's name."""

    scope: str
    selector: str
    parameter: str
    value: Any


class Reader:
    """Collects bindings from files in order, and what was bound at the end of every file.

    Args:
        parse: (text, its name, its kind) -> its statements in order.
    """

    def __init__(self, parse: Callable[[str, str, str], Iterator[Statement]]) -> None:
        self._parse = parse
        self.bindings: dict[Key, Binding] = {}
        self.stages: list[tuple[str, dict[Key, Binding]]] = []
        self._open: list[Path] = []
        self._named: list[tuple[str, list[Binding]]] = []
        self._imported: dict[str, dict[str, ModuleType]] = {}
        self._canonical: dict[int, Target] = {}

    def read_named(self, path: Path) -> None:
        """Read a file that was asked for by name, and remember what it wrote."""
        before = dict(self.bindings)
        self.read_file(path)
        wrote = [binding for key, binding in self.bindings.items() if before.get(key) is not binding]
        self._named.append((config_files.shown(path.resolve()), wrote))

    def check_order(self) -> None:
        """A file must leave something: one that a later file overwrites entirely stands in the wrong place.

        Raises:
            ConfigError: a mixin was given before the model that it should change.
        """
        for name, wrote in self._named:
            last = [self.bindings[binding.key] for binding in wrote]
            if wrote and all(now is not then and now.value != then.value for now, then in zip(last, wrote)):
                raise ConfigError(f"{name} has no effect: {last[0].origin} sets {last[0].key} after it; "
                                  "give the model first, then what changes it.")

    def read_file(self, path: Path) -> None:
        """Read a file, and those it includes at the places where it includes them."""
        path = path.resolve()
        if path in self._open:
            chain = " -> ".join(config_files.shown(item) for item in [*self._open, path])
            raise ConfigError(f"configurations include each other: {chain}")
        try:
            text = path.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigError(f"{path} cannot be read: {error}") from error
        self._open.append(path)
        kind = "shipped" if config_files.is_shipped(path) else "file"
        self.read_text(text, config_files.shown(path), kind, path.parent)
        self._open.pop()

    def read_text(self, text: str, name: str, kind: str, folder: Path | None = None) -> None:
        """Read statements that bring their own imports."""
        table: dict[str, ModuleType] = {}
        dynamic = False
        for statement in self._parse(text, name, kind):
            origin = Origin(name, statement.line, kind)
            try:
                if isinstance(statement, Include):
                    self.read_file(config_files.find(statement.name, folder))
                elif isinstance(statement, Import):
                    if statement.module == DYNAMIC:
                        dynamic = True
                    elif not dynamic:
                        raise ConfigError("begin the file with: from __gin__ import dynamic_registration")
                    else:
                        self._import(statement, table)
                elif isinstance(statement, Bind):
                    self._bind(statement, table, origin)
            except Located:
                raise
            except ConfigError as error:
                raise Located(f"{origin}: {error}") from error
        self.stages.append((name, dict(self.bindings)))

    def read_override(self, text: str) -> None:
        """Read statements that use the imports of everything read so far."""
        name = f"{OVERRIDE} {text!r}"
        found = False
        for statement in self._parse(text, name, "override"):
            found = True
            if not isinstance(statement, Bind):
                raise ConfigError(f"{name}: only bindings, NAME = value or module.Class.parameter = value, "
                                  "can be overridden; give files with --config.")
            try:
                self._bind(statement, None, Origin(name, statement.line, "override"))
            except ConfigError as error:
                raise ConfigError(f"{name}: {error}") from error
        if not found:
            raise ConfigError(f"{name}: empty; write NAME = value or module.Class.parameter = value.")

    def _import(self, statement: Import, table: dict[str, ModuleType]) -> None:
        module = import_module(migrations.rename_module(statement.module))
        if statement.whole:
            module = import_module(statement.bound)
        table[statement.bound] = module
        self._imported.setdefault(statement.bound, {})[module.__name__] = module

    def _bind(self, statement: Bind, table: dict[str, ModuleType] | None,
              origin: Origin) -> None:
        value = map_leaves(lambda leaf: self._resolved(leaf, table), statement.value)
        if not statement.parameter:
            macro = f"{statement.scope}/{statement.selector}" if statement.scope else statement.selector
            key = Key(migrations.rename_binding(macro), MACRO, "value")
        else:
            target = self._find(statement.selector, table)
            name = migrations.rename_binding(f"{target.selector}.{statement.parameter}").rpartition(".")[2]
            if target == MACRO:
                name = "value"
            self._check_parameter(target, name)
            key = Key(statement.scope, target, name)
        # A value written again takes its place in the order anew, as gin's last writer wins.
        self.bindings.pop(key, None)
        self.bindings[key] = Binding(key, value, origin)

    def _check_parameter(self, target: Target, name: str) -> None:
        parameters = parameters_of(target.object) if target.object is not None else None
        if parameters is not None and name not in parameters:
            known = ", ".join(parameters) or "none"
            hint = did_you_mean(name, parameters) or f" It takes: {known}."
            raise ConfigError(f"{target.selector} has no parameter '{name}'.{hint}")

    def _resolved(self, leaf: Any, table: dict[str, ModuleType] | None) -> Any:
        if not isinstance(leaf, Reference):
            return leaf
        target = self._find(leaf.selector, table)
        return Reference(leaf.scopes, target.selector, leaf.evaluate, target)

    def _find(self, selector: str, table: dict[str, ModuleType] | None) -> Target:
        selector = migrations.rename_module(selector)
        target = resolve(selector, table) if table is not None else self._find_anywhere(selector)
        # One class may be reached by several names; its first name is the one it keeps here.
        return target if target.object is None else self._canonical.setdefault(id(target.object), target)

    def _find_anywhere(self, selector: str) -> Target:
        """Resolve an override's selector: a file's import, a full name, or the name of a class in use."""
        first = selector.partition(".")[0]
        if first == "gin":
            return resolve(selector, {})
        found: dict[Any, Target] = {}
        errors: list[ConfigError] = []
        for module in self._imported.get(first, {}).values():
            try:
                target = resolve(selector, {first: module})
                found[target.object] = target
            except ConfigError as error:
                errors.append(error)
        if not found:
            tail = f".{selector}"
            found = {target.object: target for target in self._canonical.values()
                     if f".{target.selector}".endswith(tail)}
        if not found and "." in selector and first == __package__:
            import_module(_module_part(selector))
            return resolve(selector, {first: import_module(first)})
        if len(found) == 1:
            return next(iter(found.values()))
        if found:
            raise ConfigError(f"'{selector}' means {' or '.join(sorted(t.selector for t in found.values()))}; "
                              "write the full name.")
        if errors:
            raise errors[0]
        known = {f"{t.module.rpartition('.')[2]}.{t.path}" for t in self._canonical.values() if t.module}
        raise ConfigError(f"no class or function '{selector}' in this configuration.{did_you_mean(selector, known)}")


class Located(ConfigError):
    """A configuration error that already says where it stands."""


def _module_part(selector: str) -> str:
    """The leading parts of a full name that are written like modules."""
    parts = selector.split(".")
    lower = [part for part in parts[:-1] if not part[:1].isupper()]
    return ".".join(lower)
