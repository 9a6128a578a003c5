"""The pieces of a configuration as plain data: what a binding says, where it stands, how it is written.

gin keeps only the last value of every parameter. An error that names file and line, a merged text that says where each
value comes from, and a check for bindings that nothing reads all need to know more, so the statements are kept here.
"""

import difflib
import importlib
import inspect
import pprint
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from types import ModuleType
from typing import Any

from .errors import ConfigError

REQUIRED_NAME = "gin.REQUIRED"
LINE_LENGTH = 110


@dataclass(frozen=True)
class Macro:
    """A reference to a macro, ``%NAME``."""

    name: str

    def __repr__(self) -> str:
        return f"%{self.name}"

    @property
    def required(self) -> bool:
        """True for ``%gin.REQUIRED``, the mark of a fact that has no default."""
        return self.name in (REQUIRED_NAME, "REQUIRED")


@dataclass(frozen=True)
class Target:
    """A class or function that a selector names.

    Attributes:
        module: the module it was imported from, "" for gin's own names.
        path: the attribute path inside the module, as ``RAVE`` or ``Class.method``.
        object: the class or function; None for a macro.
    """

    module: str
    path: str
    object: Any = field(compare=False, default=None, repr=False)

    @property
    def selector(self) -> str:
        """The full dotted name."""
        return f"{self.module}.{self.path}" if self.module else self.path


MACRO = Target("", "gin.macro")


@dataclass(frozen=True)
class Reference:
    """A reference to a class or function, ``@scope/module.Name`` or, called, ``@scope/module.Name()``."""

    scopes: tuple[str, ...]
    selector: str
    evaluate: bool
    target: Target | None = None

    def __repr__(self) -> str:
        return f"@{'/'.join((*self.scopes, self.selector))}{'()' if self.evaluate else ''}"


@dataclass(frozen=True)
class Origin:
    """Where a statement stands.

    Attributes:
        name: the file as a person would name it, ``--override``, or ``run`` for a saved configuration.
        line: line number, from 1.
        kind: ``shipped`` (comes with the package), ``file``, ``saved`` (a run's own text) or ``override``.
    """

    name: str
    line: int
    kind: str

    def __str__(self) -> str:
        return self.name if self.kind == "override" else f"{self.name}:{self.line}"


@dataclass(frozen=True)
class Key:
    """What a binding binds: a parameter of a target in a scope; a macro is the scope of ``gin.macro``."""

    scope: str
    target: Target
    parameter: str

    @property
    def is_macro(self) -> bool:
        """True when the binding defines a macro."""
        return self.target == MACRO

    def written(self, selector: str | None = None) -> str:
        """The left side of the binding as text, with a selector shorter than the full one if given."""
        if self.is_macro:
            return self.scope
        scope = f"{self.scope}/" if self.scope else ""
        return f"{scope}{selector or self.target.selector}.{self.parameter}"

    def __str__(self) -> str:
        module = self.target.module.rpartition(".")[2]
        return self.written(f"{module}.{self.target.path}" if module else None)


@dataclass(frozen=True)
class Binding:
    """A key, its value (literals, Macro and Reference, nested in lists, tuples and dictionaries), and its place."""

    key: Key
    value: Any
    origin: Origin


Bindings = Mapping[Key, Binding]


def map_leaves(function: Callable[[Any], Any], value: Any) -> Any:
    """Apply a function to everything in a nested value that is no container."""
    if isinstance(value, dict):
        return {map_leaves(function, key): map_leaves(function, item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return type(value)(map_leaves(function, item) for item in value)
    return function(value)


def leaves(value: Any) -> Iterator[Any]:
    """Everything in a nested value that is no container."""
    if isinstance(value, dict):
        for key, item in value.items():
            yield from leaves(key)
            yield from leaves(item)
    elif isinstance(value, (list, tuple)):
        for item in value:
            yield from leaves(item)
    else:
        yield value


def is_literal(value: Any) -> bool:
    """True when a value can be written in a configuration and read back equal."""
    plain = (str, int, float, bool, type(None), Macro, Reference)
    return all(isinstance(leaf, plain) and leaf == leaf and leaf not in (float("inf"), float("-inf"))
               for leaf in leaves(value))


def did_you_mean(name: str, known: Iterable[str], *, limit: int = 3) -> str:
    """" Did you mean ...?" with the nearest known names, or an empty string.

    A dotted name is compared as a whole first, then by its last part, so that ``Encoder.capacity`` finds
    ``nets.Encoder.capacity``.
    """
    names = sorted(set(known) - {name})
    near = _nearest(name.lower(), {candidate.lower(): candidate for candidate in names}, limit)
    if not near:
        tails = {candidate.rpartition(".")[2].lower(): candidate for candidate in names}
        near = _nearest(name.rpartition(".")[2].rpartition("/")[2].lower(), tails, limit)
    return f" Did you mean {' or '.join(near)}?" if near else ""


def _nearest(name: str, candidates: Mapping[str, str], limit: int) -> list[str]:
    return [candidates[match] for match in difflib.get_close_matches(name, candidates, n=limit, cutoff=0.7)]


def parameters_of(target: Any) -> dict[str, inspect.Parameter] | None:
    """The parameters that a configuration may bind, or None where any name is accepted or Python cannot tell."""
    try:
        signature = inspect.signature(target)
    except (TypeError, ValueError):
        return None
    kinds = [parameter.kind for parameter in signature.parameters.values()]
    if inspect.Parameter.VAR_KEYWORD in kinds:
        return None
    return {name: parameter for name, parameter in signature.parameters.items()
            if parameter.kind in (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)}


def resolve(selector: str, table: Mapping[str, ModuleType]) -> Target:
    """Find the class or function that a dotted name means under a file's imports.

    Args:
        selector: as written, ``rave.RAVE``.
        table: the names that the file's imports bind.

    Raises:
        ConfigError: the first name is not imported, or an attribute does not exist; with the nearest names.
    """
    first, *rest = selector.split(".")
    if first == "gin" and rest in (["macro"], ["singleton"]):
        return MACRO if rest == ["macro"] else Target("", "gin.singleton")
    if first not in table:
        hint = did_you_mean(first, table) or " Import it: from package.module import name."
        raise ConfigError(f"'{first}' in '{selector}' is not imported here.{hint}")
    module: ModuleType = table[first]
    value: Any = module
    path: list[str] = []
    for name in rest:
        if not hasattr(value, name):
            public = [candidate for candidate in dir(value) if not candidate.startswith("_")]
            owner = ".".join([module.__name__, *path])
            raise ConfigError(f"{owner} has no '{name}'.{did_you_mean(name, public)}")
        value = getattr(value, name)
        if isinstance(value, ModuleType):
            module, path = value, []
        else:
            path.append(name)
    if not callable(value) or not path:
        raise ConfigError(f"'{selector}' is {type(value).__name__}, not a class or a function.")
    return Target(module.__name__, ".".join(path), value)


def import_module(name: str) -> ModuleType:
    """Import a module that a configuration names.

    Raises:
        ConfigError: there is no such module; with the nearest names in its package.
    """
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name is None or not (name == error.name or name.startswith(f"{error.name}.")):
            raise ConfigError(f"importing {name} failed: the module {error.name} is not installed.") from error
    package, _, last = name.rpartition(".")
    known: list[str] = []
    if package:
        parent = import_module(package)
        if callable(getattr(parent, last, None)):
            short = package.rpartition(".")[2]
            raise ConfigError(f"'{name}' is not a module; import {package} and write {short}.{last}.")
        known = _submodules(parent)
    raise ConfigError(f"there is no module '{name}'.{did_you_mean(last, known)}")


def _submodules(package: ModuleType) -> list[str]:
    import pkgutil

    return [module.name for module in pkgutil.iter_modules(getattr(package, "__path__", []))]


class Names:
    """Short, unique names for modules, so that a written configuration can import each once.

    Args:
        modules: full names of the modules that the text will mention.
    """

    def __init__(self, modules: Iterable[str]) -> None:
        self.short: dict[str, str] = {}
        taken = {"gin"}
        for module in sorted(set(modules) - {""}, key=lambda name: (name.count("."), name)):
            parts = module.split(".")
            short = parts[-1]
            for depth in range(2, len(parts) + 1):
                if short not in taken:
                    break
                short = "_".join(parts[-depth:])
            while short in taken:
                short += "_"
            taken.add(short)
            self.short[module] = short

    def imports(self) -> list[str]:
        """The import statements, sorted by module."""
        lines = []
        for module, short in sorted(self.short.items()):
            package, _, last = module.rpartition(".")
            line = f"from {package} import {last}" if package else f"import {module}"
            lines.append(line if short == last else f"{line} as {short}")
        return lines

    def selector(self, target: Target) -> str:
        """The name of a target under these imports."""
        return f"{self.short[target.module]}.{target.path}" if target.module else target.path

    def rewrite(self, value: Any) -> Any:
        """The same value with every reference named under these imports."""
        def leaf(item: Any) -> Any:
            if isinstance(item, Reference) and item.target is not None:
                return Reference(item.scopes, self.selector(item.target), item.evaluate, item.target)
            return item

        return map_leaves(leaf, value)


def write(bindings: Bindings, *, comments: bool = False) -> str:
    """A configuration as text that ``config.load(text=...)`` reads back to the same bindings.

    Args:
        bindings: what to write.
        comments: append the origin of every binding.
    """
    targets = [key.target for key in bindings]
    targets += [leaf.target for binding in bindings.values() for leaf in leaves(binding.value)
                if isinstance(leaf, Reference) and leaf.target is not None]
    names = Names(target.module for target in targets)
    lines = ["from __gin__ import dynamic_registration", "", *names.imports(), ""]

    def statement(left: str, binding: Binding) -> str:
        value = pprint.pformat(names.rewrite(binding.value), width=LINE_LENGTH, sort_dicts=False)
        if "\n" in value:
            value = "\\\n    " + value.replace("\n", "\n    ")
        return f"{left} = {value}" + (f"  # {binding.origin}" if comments else "")

    lines += [statement(key.scope, binding) for key, binding in bindings.items() if key.is_macro]
    groups: dict[tuple[str, Target], list[Binding]] = {}
    for key, binding in bindings.items():
        if not key.is_macro:
            groups.setdefault((key.scope, key.target), []).append(binding)
    for (scope, target), group in groups.items():
        lines += ["", f"{scope}/{names.selector(target)}:" if scope else f"{names.selector(target)}:"]
        lines += ["    " + statement(binding.key.parameter, binding).replace("\n", "\n    ") for binding in group]
    return "\n".join(lines).strip() + "\n"
