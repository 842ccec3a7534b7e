"""The package as users install it: a wheel and an editable install, imported from projects with folders of the same names."""

import shutil
import subprocess
import sys
import sysconfig
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = {"duonlp", "tfnlp", "jaxnlp"}
SOURCES = ("pyproject.toml", "README.md", "LICENSE", "shared", "tfnlp", "jaxnlp", "tests", "benchmarks", "tpu_scripts")


@pytest.fixture(scope="module")
def source(tmp_path_factory) -> Path:
    """A copy of the repository, so that building writes nothing into the real one."""
    copy = tmp_path_factory.mktemp("source")
    for name in SOURCES:
        if (ROOT / name).is_dir():
            shutil.copytree(ROOT / name, copy / name, ignore=shutil.ignore_patterns("__pycache__", "*.npz"))
        else:
            shutil.copy(ROOT / name, copy)
    return copy


def pip(*arguments: str, python: Path | str = sys.executable) -> None:
    """Run pip, which needs no network here, for an environment."""
    command = [sys.executable, "-m", "pip", "--python", str(python), "--quiet", "--disable-pip-version-check"]
    done = subprocess.run([*command, *arguments], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.fixture(scope="module")
def wheel(source, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    pip("wheel", "--no-deps", "--no-build-isolation", "--wheel-dir", str(folder), str(source))
    return next(folder.glob("*.whl"))


@pytest.fixture(scope="module")
def project(tmp_path_factory) -> Path:
    """A project of somebody else, with packages that duonlp's repository has folders for."""
    folder = tmp_path_factory.mktemp("project")
    for name in ("shared", "tests", "benchmarks"):
        (folder / name).mkdir()
        (folder / name / "__init__.py").write_text(f"OWNER = {name!r}\n")
    (folder / "shared" / "data").mkdir()  # a plain folder, which would be a namespace package
    (folder / "shared" / "data" / "train.csv").write_text("text,label\n")
    return folder


def environment(folder: Path) -> Path:
    """Make a virtual environment that sees this one's dependencies but not its duonlp; return its Python.

    A path in a .pth file is searched for packages, but .pth files in it are not read, so this environment's editable
    install stays unknown.
    """
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(folder)], check=True)
    python = folder / "bin" / "python"
    report = "import sysconfig; print(sysconfig.get_path('purelib'))"
    packages = subprocess.run([python, "-c", report], capture_output=True, text=True, check=True).stdout.strip()
    Path(packages, "dependencies.pth").write_text(sysconfig.get_path("purelib") + "\n")
    return python


CHECK = """
import pathlib, sys
import shared, tests, benchmarks
import duonlp, duonlp.data, duonlp.benchmark, duonlp.parity
import jaxnlp, tfnlp
assert (shared.OWNER, tests.OWNER, benchmarks.OWNER) == ("shared", "tests", "benchmarks")
print(pathlib.Path(duonlp.__file__).resolve().parent)
"""


@pytest.mark.parametrize("editable", [False, True], ids=["wheel", "editable"])
def test_imports_beside_folders_of_the_same_names(editable, source, wheel, project, tmp_path, monkeypatch):
    pytest.importorskip("tensorflow")
    pytest.importorskip("flax")
    monkeypatch.delenv("PYTHONPATH")  # which conftest.py sets for the other tests' processes
    python = environment(tmp_path / "environment")
    what = ["--editable", str(source)] if editable else [str(wheel)]
    pip("install", "--no-deps", "--no-build-isolation", *what, python=python)
    done = subprocess.run([python, "-c", CHECK], cwd=project, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    expected = source / "shared" / "duonlp" if editable else tmp_path / "environment"
    assert Path(done.stdout.strip()).is_relative_to(expected.resolve())
    for command in ([python, "-m", "duonlp"], [python.with_name("duonlp")]):
        done = subprocess.run([*command, "--version"], cwd=project, capture_output=True, text=True, check=False)
        assert done.stdout.startswith("duonlp "), done.stderr


def test_the_wheel_holds_the_three_packages_and_nothing_else(wheel):
    names = zipfile.ZipFile(wheel).namelist()
    folders = {name.split("/")[0] for name in names}
    assert {folder for folder in folders if not folder.endswith(".dist-info")} == PACKAGES
    assert {f"{package}/py.typed" for package in PACKAGES} <= set(names)
    modules = {
        path.relative_to(ROOT / "shared" if package == "duonlp" else ROOT).as_posix()
        for package in PACKAGES
        for path in (ROOT / "shared" / package if package == "duonlp" else ROOT / package).rglob("*.py")
    }
    assert {name for name in names if name.endswith(".py")} == modules
