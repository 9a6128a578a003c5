"""Which bindings does a call read? Everything that can be reached from its entrance through references.

gin's own answer, the operative configuration, knows only what has run so far: a loss that is called at the first
training step would count as unread. Following the references tells the same before anything is built.
"""

from collections.abc import Callable, Collection, Iterable
from typing import Any

from .config_values import MACRO, Binding, Bindings, Key, Macro, Reference, Target, did_you_mean, leaves

Scope = tuple[str, ...]


def reachable(bindings: Bindings, roots: Iterable[tuple[Scope, Target]],
              given: Collection[str] = ()) -> tuple[set[Key], set[Target]]:
    """Follow the references from some roots.

    Args:
        bindings: what is bound.
        roots: (scope, target) pairs that are called first.
        given: parameters of the roots that the caller supplies, so that their bindings are not read.

    Returns:
        The keys that are read and the targets that are used.
    """
    table: dict[tuple[str, Target], dict[str, Binding]] = {}
    for key, binding in bindings.items():
        table.setdefault((key.scope, key.target), {})[key.parameter] = binding
    read: set[Key] = set()
    seen: set[tuple[Scope, Target]] = set()
    queue = list(roots)
    first = set(queue)
    while queue:
        scope, target = queue.pop()
        if (scope, target) in seen:
            continue
        seen.add((scope, target))
        effective: dict[str, Binding] = {}
        for length in range(len(scope) + 1):
            effective.update(table.get(("/".join(scope[:length]), target), {}))
        for parameter, binding in effective.items():
            if (scope, target) in first and parameter in given:
                continue
            read.add(binding.key)
            queue += _called(binding.value, scope)
    return read, {target for _, target in seen}


def _called(value: Any, scope: Scope) -> list[tuple[Scope, Target]]:
    called: list[tuple[Scope, Target]] = []
    for leaf in leaves(value):
        if isinstance(leaf, Macro) and not leaf.required:
            called.append((tuple(leaf.name.split("/")), MACRO))
        elif isinstance(leaf, Reference) and leaf.target is not None:
            called.append((leaf.scopes or scope, leaf.target))
            if not leaf.evaluate and not leaf.scopes:
                called.append(((), leaf.target))  # a function passed on may be called later, outside the scope
    return called


def unread(stages: Iterable[tuple[str, Bindings]], bindings: Bindings, roots: list[tuple[Scope, Target]],
           given: Collection[str] = ()) -> list[Binding]:
    """The bindings that have no effect and should have one.

    A later file may replace a part that an earlier one had set up (a bottleneck, a discriminator); the replaced part's
    bindings were read while the earlier file was the last one, so they are excused. An override must be read at the
    end. A shipped mixin may serve several models, so it is excused as soon as one of its bindings is read.

    Args:
        stages: what was bound at the end of every file, in order of reading.
        bindings: what is bound at the end.
        roots: see `reachable`.
        given: see `reachable`.
    """
    read, _ = reachable(bindings, roots, given)
    silent = [binding for key, binding in bindings.items() if key not in read]
    if not silent:
        return []
    excused: set[Key] = set()
    for _, stage in stages:
        excused |= reachable(stage, roots, given)[0]
    useful_files = {bindings[key].origin.name for key in bindings if key in read or key in excused}
    return [binding for binding in silent if not _is_excused(binding, excused, useful_files)]


def _is_excused(binding: Binding, once_read: set[Key], useful_files: set[str]) -> bool:
    kind = binding.origin.kind
    if kind == "override":
        return False
    if kind == "saved" or binding.key in once_read:
        return True
    return kind == "shipped" and binding.origin.name in useful_files


def suggestion(binding: Binding, bindings: Bindings, read: set[Key], used: set[Target]) -> str:
    """What the author of an unread binding may have meant."""
    key = binding.key
    if key.is_macro:
        return did_you_mean(key.scope, [other.scope for other in read if other.is_macro])
    if key.target in used:
        same = [Key(other.scope, key.target, key.parameter) for other in read if other.target == key.target]
        return did_you_mean(str(key), map(str, same)) or " Nothing uses it in this scope."
    names = {target.path for target in used if target != MACRO}
    return f" {key.target.path} is not used by this configuration.{did_you_mean(key.target.path, names)}"


def explain(silent: list[Binding], used: set[Target], describe: Callable[[Binding], str]) -> str:
    """One line for one unread binding or for a mixin that does not fit, a list for several."""
    files = {binding.origin.name for binding in silent}
    strangers = dict.fromkeys(binding.key.target.path for binding in silent if binding.key.target not in used)
    if len(files) == 1 and len(silent) > 1 and all(binding.key.target not in used for binding in silent):
        verb = "is" if len(strangers) == 1 else "are"
        return f"{files.pop()} does not fit this configuration, where {', '.join(strangers)} {verb} not used."
    lines = [describe(binding) for binding in silent]
    if len(lines) == 1:
        return f"nothing reads {lines[0]}"
    return "nothing reads these bindings:\n  " + "\n  ".join(lines)
