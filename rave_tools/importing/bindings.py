"""A foreign gin text as a table: what is bound to whom, resolved as gin would resolve it, and what nobody asked for.

Nothing that the text names is imported or built.
"""

from collections.abc import Collection, Iterator
from dataclasses import dataclass
from typing import Any

from rave_tools import config
from rave_tools.config_reader import Bind, Import, Include
from rave_tools.config_values import Macro, Reference, did_you_mean, map_leaves
from rave_tools.errors import ConfigError

MISSING = object()
"""What a lookup gives where nothing is bound."""


@dataclass(frozen=True)
class Named:
    """A foreign class or function that a value refers to, and the scope in which it would be called.

    Attributes:
        name: see `Table`.
        scope: active scope of whatever is looked up for it.
        called: written with parentheses.
    """

    name: str
    scope: tuple[str, ...] = ()
    called: bool = False

    def __str__(self) -> str:
        return f"@{'/'.join((*self.scope, self.name))}{'()' if self.called else ''}"


@dataclass(frozen=True)
class Line:
    """One binding of the text: what it binds, its raw value and where it stands."""

    scope: str
    name: str
    parameter: str
    value: Any
    number: int

    def __str__(self) -> str:
        scope = f"{self.scope}/" if self.scope else ""
        return f"{scope}{self.name}.{self.parameter}"


class Table:
    """The bindings of a foreign configuration.

    Classes are known by their bare name when they belong to the foreign package itself, otherwise by their full one
    (``torch.nn.Conv1d``).

    Args:
        text: of the configuration.
        origin: what to call it in errors.
        package: the foreign package.
        modules: its modules, as texts without imports name them.
        aliases: other packages -> the short name under which they are known here.

    Raises:
        ConfigError: the text is no gin, includes other files, or uses a macro that it does not define.
    """

    def __init__(
        self, text: str, origin: str, *, package: str, modules: Collection[str], aliases: dict[str, str] | None = None
    ) -> None:
        self.origin = origin
        self._package = package
        self._modules = modules
        self._aliases = aliases or {}
        self._imports: dict[str, str] = {}
        self._macros: dict[str, Any] = {}
        self.lines: dict[tuple[str, str, str], Line] = {}
        self._asked: set[tuple[str, str, str]] = set()
        for statement in config.statements(text, origin):
            if isinstance(statement, Include):
                raise ConfigError(
                    f"{origin}:{statement.line} includes {statement.name}; give the config.gin that a run has written, "
                    "which stands alone"
                )
            if isinstance(statement, Import):
                self._imports[statement.bound] = statement.bound if statement.whole else statement.module
            elif isinstance(statement, Bind) and not statement.parameter:
                self._macros[statement.selector] = statement.value
            elif isinstance(statement, Bind):
                name = self.known_as(statement.selector)
                line = Line(statement.scope, name, statement.parameter, statement.value, statement.line)
                self.lines[(statement.scope, name, statement.parameter)] = line

    def known_as(self, selector: str) -> str:
        """The name of a class here, from how the text writes it."""
        first, dot, rest = selector.partition(".")
        full = f"{self._imports.get(first, first)}{dot}{rest}"
        parts = full.split(".")
        if len(parts) == 1 or parts[0] == self._package or (first not in self._imports and parts[0] in self._modules):
            return parts[-1]
        if parts[0] in self._aliases:
            return f"{self._aliases[parts[0]]}.{parts[-1]}"
        return full

    def has(self, name: str) -> bool:
        """Whether anything is bound to a class, in any scope."""
        return any(key[1] == name for key in self.lines)

    def get(self, owner: Named, parameter: str, default: Any = MISSING) -> Any:
        """What gin would hand to a class, or the default: the binding of the innermost scope that has one.

        Macros are followed; references come as `Named`. Every binding that was looked at counts as asked for.
        """
        value = default
        for depth in range(len(owner.scope) + 1):
            key = ("/".join(owner.scope[:depth]), owner.name, parameter)
            if key in self.lines:
                self._asked.add(key)
                value = self.resolved(self.lines[key].value, owner.scope)
        return value

    def need(self, owner: Named, parameter: str) -> Any:
        """As `get`, of something that must be bound.

        Raises:
            ConfigError: it is not.
        """
        value = self.get(owner, parameter)
        if value is MISSING:
            raise ConfigError(f"{self.origin} does not bind {owner.name}.{parameter}, without which there is no model")
        return value

    def resolved(self, value: Any, scope: tuple[str, ...], _through: tuple[str, ...] = ()) -> Any:
        """A raw value with its macros replaced by their values and its references by `Named`.

        Raises:
            ConfigError: a macro is not defined, or defines itself.
        """

        def leaf(item: Any) -> Any:
            if isinstance(item, Reference):
                return Named(self.known_as(item.selector), item.scopes or scope, item.evaluate)
            if not isinstance(item, Macro):
                return item
            if item.name in _through:
                raise ConfigError(f"{self.origin}: the macro {item.name} refers to itself")
            if item.name not in self._macros:
                raise ConfigError(
                    f"{self.origin} uses %{item.name}, which it does not define.{did_you_mean(item.name, self._macros)}"
                )
            return self.resolved(self._macros[item.name], scope, (*_through, item.name))

        return map_leaves(leaf, value)

    def owners(self, name: str) -> Iterator[Named]:
        """A class in every scope in which something is bound to it."""
        for scope in dict.fromkeys(key[0] for key in self.lines if key[1] == name):
            yield Named(name, tuple(scope.split("/")) if scope else ())

    def left(self) -> list[Line]:
        """The bindings that nobody asked for, in their order."""
        return [line for key, line in self.lines.items() if key not in self._asked]
