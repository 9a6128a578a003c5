"""From a foreign table of bindings to a configuration of ours: a machine that runs tables of correspondences.

A table says for each foreign class which class of ours it becomes, which parameters carry over, and which have a value
that changes nothing here. What no table knows is never dropped in silence: it is listed as not taken, or refused where
the model would not be the same.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from rave_tools.config_values import Macro, did_you_mean
from rave_tools.errors import ConfigError
from rave_tools.importing.bindings import MISSING, Line, Named, Table


@dataclass(frozen=True)
class Ours:
    """A class of ours as a value: ``@scope/module.Class`` or, built there, with parentheses.

    Attributes:
        target: full name, ``rave_tools.module.Class``.
        scope: in which it is built.
        called: a new object; otherwise the class itself, for the receiver to build.
    """

    target: str
    scope: str = ""
    called: bool = True


@dataclass(frozen=True)
class Take:
    """A parameter that carries over.

    Attributes:
        ours: its name here.
        default: what the foreign class takes when nothing is bound; `MISSING` leaves ours at its own default.
        macro: the fact it states, so that the file says it once.
        table: values that are spelt otherwise here.
        instead_of_none: what ours takes where the foreign class takes None.
    """

    ours: str
    default: Any = MISSING
    macro: str | None = None
    table: Mapping[Any, Any] | None = None
    instead_of_none: Any = None


@dataclass(frozen=True)
class Slot:
    """A parameter that holds another class.

    Attributes:
        ours: its name here.
        parts: foreign name -> correspondence.
        called: whether ours wants an object; otherwise the class itself.
        default: what the foreign class takes when nothing is bound.
    """

    ours: str
    parts: Mapping[str, "Part"]
    called: bool = True
    default: Any = MISSING


@dataclass(frozen=True)
class Part:
    """What one foreign class becomes.

    Attributes:
        ours: full name of our class, or of a function.
        takes: by foreign parameter.
        slots: by foreign parameter.
        neutral: by foreign parameter, the values that change nothing; any other is refused.
        ignored: by foreign parameter, why it does not matter whatever it is.
        fixed: by our parameter, what every such part is given here.
        inner: classes that the foreign one builds by itself and that have bindings of their own.
    """

    ours: str
    takes: Mapping[str, Take] = field(default_factory=dict)
    slots: Mapping[str, Slot] = field(default_factory=dict)
    neutral: Mapping[str, tuple[Any, ...]] = field(default_factory=dict)
    ignored: Mapping[str, str] = field(default_factory=dict)
    fixed: Mapping[str, Any] = field(default_factory=dict)
    inner: Mapping[str, "Part"] = field(default_factory=dict)


class Draft:
    """The configuration of ours that comes about, and what is said about it.

    Args:
        table: the foreign bindings.
        base: shipped configuration that it stands on.

    Attributes:
        left: (binding, why it does not matter).
        notes: sentences about what a person should know.
    """

    def __init__(self, table: Table, base: str) -> None:
        self.table = table
        self.base = base
        self.macros: dict[str, Any] = {}
        self.bindings: dict[tuple[str, str, str], Any] = {}
        self.left: list[tuple[str, str]] = []
        self.notes: list[str] = []
        self._ignored: dict[tuple[str, str], str] = {}
        self._reached: set[Named] = set()

    def state(self, macro: str, value: Any) -> None:
        """A fact that the whole file shares."""
        self.macros[macro] = value

    def bind(self, target: str, parameter: str, value: Any, *, scope: str = "", macro: str | None = None) -> None:
        """A parameter of ours; as a reference to a macro where that says the same, or says nothing yet."""
        if macro is not None and self.macros.setdefault(macro, value) == value:
            value = Macro(macro)
        self.bindings[(scope, target, parameter)] = value

    def refuse(self, owner: Named, parameter: str, value: Any, reason: str) -> ConfigError:
        """An error about a binding without which the model would be another one."""
        return ConfigError(f"{self.table.origin}: {owner.name}.{parameter} = {value!s} cannot be imported: {reason}")

    def ignore(self, name: str, parameters: Mapping[str, str]) -> None:
        """Say why parameters of a foreign class do not matter; ``*`` stands for all the others."""
        self._ignored.update({(name, parameter): reason for parameter, reason in parameters.items()})

    def part(self, owner: Named, part: Part, *, scope: str | None = None) -> None:
        """Carry a foreign class over to the bindings of ours.

        Args:
            owner: the foreign class, in its scope.
            part: what it becomes.
            scope: ours; by default the same as theirs.

        Raises:
            ConfigError: a value without counterpart here.
        """
        scope = "/".join(owner.scope) if scope is None else scope
        self._reached.add(Named(owner.name, owner.scope))
        for ours, value in part.fixed.items():
            self.bind(part.ours, ours, value, scope=scope)
        for name, take in part.takes.items():
            value = self.table.get(owner, name, take.default)
            if value is MISSING:
                continue
            if take.table is not None:
                if value not in take.table:
                    raise self.refuse(owner, name, value, f"here it is one of {', '.join(map(str, take.table))}")
                value = take.table[value]
            if value is None and take.instead_of_none is not None:
                self.bind(part.ours, take.ours, take.instead_of_none, scope=scope)
            else:
                self.bind(part.ours, take.ours, value, scope=scope, macro=take.macro)
        for name, slot in part.slots.items():
            value = self.table.get(owner, name, slot.default)
            if value is not MISSING:
                self.bind(part.ours, slot.ours, self.choose(owner, name, value, slot, scope=scope), scope=scope)
        for name, allowed in part.neutral.items():
            value = self.table.get(owner, name)
            if value is not MISSING and value not in allowed:
                raise self.refuse(owner, name, value, f"only {' or '.join(map(str, allowed))} has a counterpart here")
        for name, inner in part.inner.items():
            self.part(Named(name, owner.scope), inner, scope=scope)
        self.ignore(owner.name, part.ignored)

    def choose(self, owner: Named, parameter: str, value: Any, slot: Slot, *, scope: str = "") -> Any:
        """The value of ours for a slot, with everything inside it carried over.

        Raises:
            ConfigError: a class that no table knows.
        """
        if value is None:
            return None
        if isinstance(value, (list, tuple)):
            return [self.choose(owner, parameter, item, slot, scope=scope) for item in value]
        if not isinstance(value, Named) or value.name not in slot.parts:
            known = ", ".join(slot.parts)
            name = value.name if isinstance(value, Named) else str(value)
            hint = did_you_mean(name, slot.parts)
            raise self.refuse(owner, parameter, value, f"that class is not known here; known are {known}.{hint}")
        part = slot.parts[value.name]
        inside = "/".join(value.scope) or scope
        self.part(value, part, scope=inside)
        return Ours(part.ours, inside if inside != scope else "", slot.called)

    def finish(self, known: Iterable[str]) -> list[Line]:
        """Sort what nobody asked for: what has a reason goes to `left`, the rest is returned, not taken.

        Args:
            known: foreign classes that are known, so that a binding of one that the model does not use is idle.
        """
        untaken = []
        for line in self.table.left():
            reason = self._ignored.get((line.name, line.parameter)) or self._ignored.get((line.name, "*"))
            if reason is None and line.name in known and not self._is_reached(line):
                reason = "the model does not use this class here"
            if reason is None:
                untaken.append(line)
            else:
                self.left.append((str(line), reason))
        return untaken

    def _is_reached(self, line: Line) -> bool:
        """Whether a binding reaches a class that the model uses: only its parameter is unknown then."""
        scope = tuple(line.scope.split("/")) if line.scope else ()
        return any(one.name == line.name and one.scope[: len(scope)] == scope for one in self._reached)

    def text(self) -> str:
        """The configuration as gin text, on top of its base."""
        return gin_text(self.base, self.macros, self.bindings)


def gin_text(base: str, macros: Mapping[str, Any], bindings: Mapping[tuple[str, str, str], Any]) -> str:
    """A configuration on top of a shipped one.

    Args:
        base: the shipped one.
        macros: facts by name.
        bindings: (scope, full name of a class, parameter) -> value; `Ours` for objects, `Macro` for facts.
    """
    classes = {target for _, target, _ in bindings}
    classes |= {ours.target for value in [*bindings.values(), *macros.values()] for ours in _ours(value)}
    short = {module: f"m{index}" for index, module in enumerate(sorted({c.rpartition(".")[0] for c in classes}))}

    def named(target: str) -> str:
        module, _, name = target.rpartition(".")
        return f"{short[module]}.{name}"

    lines = ["from __gin__ import dynamic_registration", ""]
    for module, alias in short.items():
        package, _, last = module.rpartition(".")
        lines.append(f"from {package} import {last} as {alias}" if package else f"import {module} as {alias}")
    lines += ["", f"include '{base}'", ""]
    lines += [f"{name} = {_written(value, named)}" for name, value in macros.items()]
    for (scope, target, parameter), value in bindings.items():
        prefix = f"{scope}/" if scope else ""
        lines.append(f"{prefix}{named(target)}.{parameter} = {_written(value, named)}")
    return "\n".join(lines) + "\n"


def _ours(value: Any) -> Iterable[Ours]:
    if isinstance(value, Ours):
        yield value
    elif isinstance(value, dict):
        for item in value.values():
            yield from _ours(item)
    elif isinstance(value, (list, tuple)):
        for item in value:
            yield from _ours(item)


def _written(value: Any, named: Any) -> str:
    if isinstance(value, Ours):
        scope = f"{value.scope}/" if value.scope else ""
        return f"@{scope}{named(value.target)}{'()' if value.called else ''}"
    if isinstance(value, dict):
        return "{" + ", ".join(f"{key!r}: {_written(item, named)}" for key, item in value.items()) + "}"
    if isinstance(value, (list, tuple)):
        inside = ", ".join(_written(item, named) for item in value)
        return f"[{inside}]" if isinstance(value, list) else f"({inside}{',' if len(value) == 1 else ''})"
    return repr(value)
