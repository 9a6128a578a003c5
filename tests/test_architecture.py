"""The plan of the house, held by reading the code: which floor may import which, and what is written nowhere.

Every rule is also shown a source that breaks it, so that a rule that finds nothing is a rule that can fail.
"""

import ast
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

PACKAGE = "rave_tools"
ROOT = Path(__file__).resolve().parent.parent / PACKAGE

FLOORS = {
    "cli": 6,
    "training": 5,
    "inference": 4, "export": 4, "factory": 4, "importing": 4,
    "codec": 3, "generative": 3, "criteria": 3,
    "nn": 2, "data": 2,
    "dsp": 1, "contracts": 1, "runs": 1, "config": 1, "migrations": 1, "errors": 1, "findings": 1,
}
# The ground floor's rooms are blind to each other too, but for these.
GROUND = {"runs": {"migrations", "errors"}, "config": {"migrations", "errors"}, "dsp": {"errors"}}

ONLY_IN = {
    "gin": ("config.py",),
    "lightning": ("training/", "data/datamodule.py"),
    "pytorch_lightning": (),
    "absl": ("cli/",),
    "cached_conv": ("nn/conv.py",),
    "udls": ("data/store.py",),
    "lmdb": ("data/store.py",),
    "rave": (),
    "scripts": (),
    "tests": (),
}
OPTIONAL = {
    "transformers", "sentencepiece", "onnx", "onnxruntime", "onnxscript", "neutone_sdk", "pesq", "pystoi", "submitit",
    "wandb",
}


def room(path: str) -> str:
    """The room that a file, as a path inside the package, belongs to."""
    first = path.partition("/")[0].removesuffix(".py")
    return "config" if first.startswith("config_") else first


def imports(tree: ast.AST, path: str) -> Iterator[tuple[str, int]]:
    """(full dotted name, line) of everything that a file imports, relative imports resolved."""
    package = [PACKAGE, *path.split("/")[:-1]]
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield alias.name, node.lineno
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            module = ".".join([*base, *(node.module.split(".") if node.module else [])])
            for alias in node.names:
                yield f"{module}.{alias.name}", node.lineno


def floors(tree: ast.Module, path: str) -> Iterator[str]:
    """Imports that rise, or that look into a room of the same floor."""
    here = room(path)
    if here in ("__init__", "__main__"):
        return
    if here not in FLOORS:
        yield f"{here} stands on no floor"
        return
    for name, line in imports(tree, path):
        parts = name.split(".")
        if parts[0] != PACKAGE or len(parts) < 2 or parts[1].startswith("__"):
            continue
        there = room(parts[1])
        if there not in FLOORS:
            yield f"line {line}: {name} stands on no floor"
        elif FLOORS[there] > FLOORS[here]:
            yield f"line {line}: {here} (floor {FLOORS[here]}) imports {there} (floor {FLOORS[there]})"
        elif FLOORS[there] == FLOORS[here] and there != here and there not in GROUND.get(here, set()):
            yield f"line {line}: {here} and {there} share floor {FLOORS[here]} and are blind to each other"


def exclusives(tree: ast.Module, path: str) -> Iterator[str]:
    """Libraries that one room alone may know."""
    for name, line in imports(tree, path):
        places = ONLY_IN.get(name.partition(".")[0])
        if places is not None and not path.startswith(tuple(places) or ("/",)):
            yield f"line {line}: {name} outside {' and '.join(places) or 'anywhere'}"


def optional_inside(tree: ast.Module, path: str) -> Iterator[str]:
    """Libraries of the extras are imported where they are needed, so that the package loads without them."""
    for node in tree.body:
        if isinstance(node, (ast.Import, ast.ImportFrom)):
            for name, line in imports(ast.Module([node], []), path):
                if name.partition(".")[0] in OPTIONAL:
                    yield f"line {line}: {name} at the top of the module"


def light_commands(tree: ast.Module, path: str) -> Iterator[str]:
    """Command modules load torch inside run, so that --help answers at once."""
    heavy = {"torch", "lightning", "scipy", "matplotlib"}
    if not path.startswith("cli/"):
        return
    for node in tree.body:
        if isinstance(node, (ast.Import, ast.ImportFrom)):
            for name, line in imports(ast.Module([node], []), path):
                if name.partition(".")[0] in heavy:
                    yield f"line {line}: {name} at the top of a command"


def cached_conv_switches(tree: ast.Module, path: str) -> Iterator[str]:
    """cached_conv's global switches decide at construction which class one gets; ours decide nothing globally."""
    switches = {"use_cached_conv", "USE_BUFFER_CONV", "MAX_BATCH_SIZE"}
    for node in ast.walk(tree):
        name = node.attr if isinstance(node, ast.Attribute) else node.id if isinstance(node, ast.Name) else ""
        if name in switches:
            yield f"line {node.lineno}: {name}"


def star_imports(tree: ast.Module, path: str) -> Iterator[str]:
    """Names come from somewhere one can read."""
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and any(alias.name == "*" for alias in node.names):
            yield f"line {node.lineno}: import *"


def globals_(tree: ast.Module, path: str) -> Iterator[str]:
    """No function changes a module."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Global):
            yield f"line {node.lineno}: global {', '.join(node.names)}"


def path_hacks(tree: ast.Module, path: str) -> Iterator[str]:
    """Packages are found because they are installed."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and node.attr == "path" and isinstance(node.value, ast.Name) \
                and node.value.id == "sys":
            yield f"line {node.lineno}: sys.path"


def bare_excepts(tree: ast.Module, path: str) -> Iterator[str]:
    """An except without a type swallows Ctrl-C."""
    for node in ast.walk(tree):
        if isinstance(node, ast.ExceptHandler) and node.type is None:
            yield f"line {node.lineno}: bare except"


def prints(tree: ast.Module, path: str) -> Iterator[str]:
    """Only the command line speaks."""
    if path.startswith("cli/"):
        return
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "print":
            yield f"line {node.lineno}: print"


def side_effects(tree: ast.Module, path: str) -> Iterator[str]:
    """Importing a module defines names and does nothing else."""
    for node in tree.body:
        if not _defines(node):
            yield f"line {node.lineno}: {type(node).__name__} at module level"


def _defines(node: ast.stmt) -> bool:
    if isinstance(node, (ast.Import, ast.ImportFrom, ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
        return True
    if isinstance(node, ast.Expr):
        return isinstance(node.value, ast.Constant)
    if isinstance(node, ast.Assign):
        return all(isinstance(target, (ast.Name, ast.Tuple)) for target in node.targets)
    if isinstance(node, ast.AnnAssign):
        return isinstance(node.target, ast.Name)
    if isinstance(node, ast.If):
        test = ast.unparse(node.test)
        return "TYPE_CHECKING" in test or test == "__name__ == '__main__'"
    return False


Rule = Callable[[ast.Module, str], Iterator[str]]
BROKEN: list[tuple[Rule, str, str]] = [
    (floors, "nn/conv.py", "from rave_tools.training import run"),
    (floors, "nn/conv.py", "from ..data import store"),
    (floors, "dsp/filters.py", "def f():\n    from ..runs import open_run"),
    (floors, "codec/nets/x.py", "from ...criteria.distances import x"),
    (floors, "attic/x.py", "import math"),
    (floors, "runs.py", "from . import config"),
    (exclusives, "training/run.py", "import gin"),
    (exclusives, "data/store.py", "import lightning.pytorch"),
    (exclusives, "training/run.py", "def f():\n    from absl import flags"),
    (exclusives, "nn/compose.py", "import cached_conv as cc"),
    (exclusives, "data/datasets.py", "import lmdb"),
    (exclusives, "codec/rave.py", "from rave import pqmf"),
    (exclusives, "codec/rave.py", "import tests.codec"),
    (optional_inside, "generative/text.py", "from transformers import T5EncoderModel"),
    (light_commands, "cli/train.py", "import torch"),
    (cached_conv_switches, "nn/conv.py", "import cached_conv\ncached_conv.use_cached_conv(True)"),
    (star_imports, "dsp/a.py", "from math import *"),
    (globals_, "dsp/a.py", "def f():\n    global X\n    X = 1"),
    (path_hacks, "dsp/a.py", "import sys\nsys.path.append('.')"),
    (bare_excepts, "dsp/a.py", "try:\n    x = 1\nexcept:\n    pass"),
    (prints, "dsp/a.py", "def f():\n    print(1)"),
    (side_effects, "dsp/a.py", "import torch\ntorch.set_grad_enabled(False)"),
    (side_effects, "dsp/a.py", "import torch\ntorch.backends.cudnn.benchmark = True"),
    (side_effects, "dsp/a.py", "for x in range(3):\n    pass"),
]
RULES = list(dict.fromkeys(rule for rule, _, _ in BROKEN))


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.__name__)
def test_the_package_keeps_the_rule(rule: Rule) -> None:
    found = []
    for file in sorted(ROOT.rglob("*.py")):
        path = file.relative_to(ROOT).as_posix()
        found += [f"{path}: {problem}" for problem in rule(ast.parse(file.read_text(encoding="utf-8")), path)]
    assert not found, "\n".join(found)


@pytest.mark.parametrize(("rule", "path", "source"), BROKEN, ids=lambda value: getattr(value, "__name__", None))
def test_the_rule_can_fail(rule: Rule, path: str, source: str) -> None:
    assert list(rule(ast.parse(source), path))


def test_relative_and_absolute_imports_mean_the_same() -> None:
    names = {name for source in ("from ..nn import conv", "from rave_tools.nn import conv")
             for name, _ in imports(ast.parse(source), "codec/rave.py")}
    assert names == {"rave_tools.nn.conv"}


def test_every_room_has_a_floor_and_a_docstring() -> None:
    for file in ROOT.rglob("*.py"):
        path = file.relative_to(ROOT).as_posix()
        assert room(path) in {*FLOORS, "__init__", "__main__"}, path
        if file.name != "__init__.py":
            assert ast.get_docstring(ast.parse(file.read_text(encoding="utf-8"))), f"{path} says nothing about itself"


def test_importing_the_package_does_nothing_and_the_command_starts_light() -> None:
    """Neither the package nor its command loads torch, so that --help answers at once."""
    code = ("import sys, rave_tools; bare = {m for m in sys.modules if m.startswith('rave_tools')};"
            "assert bare == {'rave_tools'}, bare;"
            "import rave_tools.cli.main as main; [main.load_command(n) for n in main.COMMANDS];"
            "heavy = {'torch', 'lightning', 'scipy', 'matplotlib'} & set(sys.modules); assert not heavy, heavy")
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT.parent)
