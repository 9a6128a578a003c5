"""Build the block host against an installed torch, once per source, compiler and torch; print where it is.

    python tests/host/build.py [--torch FOLDER_OF_THE_TORCH_PACKAGE] [--into FOLDER]

The executable is kept in ``tests/host/build/`` (not in git) under a name that hashes everything it depends on.
``--torch`` names the ``torch`` folder of another wheel, so that one file can be tried on several versions of libtorch.
"""

import argparse
import fcntl
import hashlib
import importlib.util
import os
import shutil
import subprocess
from pathlib import Path

HERE = Path(__file__).resolve().parent
SOURCE = HERE / "host.cpp"
NEW_STRINGS = b"_ZN3c105ErrorC2ENS_14SourceLocationENSt7__cxx11"
"""Constructor of c10::Error in a libc10 that was built with the C++11 ABI of libstdc++."""


class NoCompiler(RuntimeError):
    """There is no C++ compiler, so there is no host."""


def find_compiler() -> str:
    """``$CXX``, else g++, else clang++.

    Raises:
        NoCompiler: none of them is there.
    """
    for name in filter(None, (os.environ.get("CXX"), "g++", "clang++")):
        found = shutil.which(name)
        if found:
            return found
    raise NoCompiler("the block host needs a C++ compiler: install g++, or name one in CXX")


def torch_folder() -> Path:
    """The installed torch package, without importing it."""
    spec = importlib.util.find_spec("torch")
    assert spec is not None and spec.origin is not None
    return Path(spec.origin).parent


def build(into: Path = HERE / "build", torch: Path | None = None) -> Path:
    """Compile the host, or find it compiled.

    Args:
        into: folder of executables.
        torch: folder of a torch package with ``include`` and ``lib``; None is the installed one.

    Returns:
        The executable.

    Raises:
        NoCompiler: no compiler.
        RuntimeError: it does not compile; the message ends with what the compiler said.
    """
    compiler, torch = find_compiler(), torch or torch_folder()
    c10 = torch / "lib" / "libc10.so"
    command = [compiler, "-std=c++17", "-O1", "-rdynamic", "-pthread", "-w"]
    command += [f"-D_GLIBCXX_USE_CXX11_ABI={int(NEW_STRINGS in c10.read_bytes())}"]
    for include in ("include", "include/torch/csrc/api/include"):
        command += ["-isystem", str(torch / include)]
    link = [f"-L{torch / 'lib'}", f"-Wl,-rpath,{torch / 'lib'}", "-Wl,--no-as-needed", "-ltorch_cpu", "-lc10"]
    version = subprocess.run([compiler, "--version"], capture_output=True, text=True, check=True).stdout
    known = [SOURCE.read_bytes(), version.encode(), " ".join(command + link).encode(), c10.read_bytes()]
    target = into / f"host-{hashlib.sha256(b'|'.join(known)).hexdigest()[:16]}"
    into.mkdir(parents=True, exist_ok=True)
    with open(into / ".lock", "w") as lock:  # test workers come here together
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not target.exists():
            passing = target.with_suffix(".part")
            done = subprocess.run(
                [*command, str(SOURCE), "-o", str(passing), *link], capture_output=True, text=True, check=False
            )
            if done.returncode:
                raise RuntimeError(f"the block host does not compile with {compiler}:\n{done.stderr[-4000:]}")
            passing.replace(target)
    return target


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Build the block host and print its path.")
    parser.add_argument("--torch", type=Path, default=None, help="folder of another torch package")
    parser.add_argument("--into", type=Path, default=HERE / "build")
    arguments = parser.parse_args()
    print(build(arguments.into, arguments.torch))
