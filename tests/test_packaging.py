"""What is installed: the package and its configurations and nothing else, by wheel and in editable form."""

import email
import os
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import venv
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
CARRIED = ("rave_tools", "configs", "docs", "scripts", "tests", "setup.py", "pyproject.toml", "MANIFEST.in", "LICENSE",
           "README.md", "CHANGELOG.md", "CONTRIBUTING.md", "Makefile", "requirements-cpu.txt")
CONFIGS = sorted(path.relative_to(ROOT).as_posix() for path in (ROOT / "configs").rglob("*.gin"))


@pytest.fixture(scope="module")
def checkout(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the sources, so that building leaves nothing in them."""
    folder = tmp_path_factory.mktemp("checkout")
    for name in CARRIED:
        source = ROOT / name
        if source.is_dir():
            shutil.copytree(source, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
        elif source.is_file():
            shutil.copy(source, folder / name)
    return folder


def build(checkout: Path, kind: str, folder: Path) -> Path:
    code = f"import setuptools.build_meta as b, sys; print(b.build_{kind}(sys.argv[1]))"
    done = subprocess.run([sys.executable, "-c", code, str(folder)], cwd=checkout, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return folder / done.stdout.split()[-1]


@pytest.fixture(scope="module")
def wheel(checkout: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build(checkout, "wheel", tmp_path_factory.mktemp("wheel"))


@pytest.mark.slow
def test_the_wheel_holds_the_package_and_every_configuration(wheel: Path) -> None:
    names = zipfile.ZipFile(wheel).namelist()
    for config in CONFIGS:
        assert f"rave_tools/{config}" in names
    assert "rave_tools/py.typed" in names and "rave_tools/cli/main.py" in names
    tops = {name.partition("/")[0] for name in names}
    assert {top for top in tops if not top.endswith(".dist-info")} == {"rave_tools"}, "scripts and tests stay at home"
    assert any(name.endswith("LICENSE") for name in names)


@pytest.mark.slow
def test_requirements_have_lower_bounds_and_no_pins(wheel: Path) -> None:
    archive = zipfile.ZipFile(wheel)
    name = next(item for item in archive.namelist() if item.endswith(".dist-info/METADATA"))
    metadata = email.message_from_bytes(archive.read(name))
    extras = {"text", "metrics", "export", "neutone", "wandb", "cluster", "dev"}
    assert set(metadata.get_all("Provides-Extra")) == extras
    for requirement in metadata.get_all("Requires-Dist"):
        before_marker = requirement.partition(";")[0]
        assert ">=" in before_marker and "==" not in before_marker and "<" not in before_marker, requirement


@pytest.mark.slow
def test_the_source_archive_builds_the_same_wheel(checkout: Path, wheel: Path, tmp_path: Path) -> None:
    with tarfile.open(build(checkout, "sdist", tmp_path)) as archive:
        archive.extractall(tmp_path / "unpacked")
    (folder,) = (tmp_path / "unpacked").iterdir()
    again = build(folder, "wheel", tmp_path)
    assert sorted(zipfile.ZipFile(again).namelist()) == sorted(zipfile.ZipFile(wheel).namelist())


@pytest.fixture
def environment(tmp_path: Path) -> Path:
    """A virtual environment that borrows this one's libraries, but not its rave_tools."""
    folder = tmp_path / "venv"
    venv.create(folder, with_pip=False)
    own = Path(sysconfig.get_path("purelib", vars={"base": str(folder), "platbase": str(folder)}))
    borrowed = {sysconfig.get_path("purelib"), sysconfig.get_path("platlib")}
    # Plain lines add folders; the .pth files inside them, an editable rave_tools among them, are not followed.
    (own / "borrowed.pth").write_text("\n".join(sorted(borrowed)) + "\n")
    return folder


def bin_of(environment: Path) -> Path:
    return environment / ("Scripts" if os.name == "nt" else "bin")


def install(environment: Path, *words: str) -> None:
    command = [sys.executable, "-m", "pip", "--python", str(bin_of(environment) / "python"), "install", "--quiet",
               "--no-deps", "--no-build-isolation", "--no-index", "--disable-pip-version-check", *words]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def clean_environment() -> dict[str, str]:
    """Variables without those that would show Python this checkout."""
    return {key: value for key, value in os.environ.items() if not key.startswith("PYTHON")}


def typed(environment: Path, folder: Path, *words: str) -> str:
    """Run the installed command in a folder that knows nothing of the checkout."""
    done = subprocess.run([str(bin_of(environment) / "rave_tools"), *words], cwd=folder, capture_output=True, text=True,
                          env=clean_environment())
    assert done.returncode == 0, done.stderr
    return done.stdout


def where(environment: Path, folder: Path) -> Path:
    code = "import rave_tools.config_files as f; print(f.shipped_folder())"
    done = subprocess.run([str(bin_of(environment) / "python"), "-c", code], cwd=folder, capture_output=True, text=True,
                          env=clean_environment(), check=True)
    return Path(done.stdout.strip())


@pytest.mark.slow
def test_a_wheel_install_finds_its_configurations(environment: Path, wheel: Path, tmp_path: Path) -> None:
    install(environment, str(wheel))
    assert where(environment, tmp_path).is_relative_to(environment.resolve())
    listed = typed(environment, tmp_path, "configs", "list")
    assert all(f"  {Path(config).stem} " in listed for config in CONFIGS)
    checked = typed(environment, tmp_path, "configs", "check", "v2_small", "causal", "--override", "CAPACITY = 4")
    assert "fine" in checked


@pytest.mark.slow
def test_an_editable_install_uses_the_checkouts_files(environment: Path, checkout: Path, tmp_path: Path) -> None:
    install(environment, "--editable", str(checkout))
    assert where(environment, tmp_path) == checkout.resolve() / "configs"
    mine = checkout / "configs" / "mixins" / "just_written.gin"
    mine.write_text("# Just written.\n")
    try:
        assert "Just written." in typed(environment, tmp_path, "configs", "list")
        assert "CAPACITY = 96" in typed(environment, tmp_path, "configs", "show", "v2", "just_written")
    finally:
        mine.unlink()


def test_the_version_is_stated_once() -> None:
    from rave_tools import __version__

    assert __version__.count(".") == 2
    assert f'version="{__version__}"' not in (ROOT / "setup.py").read_text(encoding="utf-8")


def test_the_one_command_checks_everything_and_the_shell_scripts_parse() -> None:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    assert "\ntest: lint types tests\n" in makefile and "rave_tools demo --output demo" in makefile
    for script in [ROOT / ".ci" / "run", *(ROOT / "scripts").glob("*.sh")]:
        assert os.access(script, os.X_OK), f"{script} is not executable"
        subprocess.run(["bash", "-n", str(script)], check=True)
