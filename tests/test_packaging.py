"""What `pip install .` gives: the packages with their data files, the recipes, and every command from any folder."""

import os
import re
import shutil
import subprocess
import sys
import zipfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

import ghost_jax
from tests.conftest import ROOT, WAIT

SHIPPED = ("ghost_jax", "evals", "configs")
COMMANDS = [
    ".".join(path.relative_to(ROOT).with_suffix("").parts)
    for package in SHIPPED
    for path in sorted((ROOT / package).rglob("*.py"))
    if 'if __name__ == "__main__":' in path.read_text(encoding="utf-8")
]


def pip(*arguments: str | Path, cwd: Path) -> None:
    """Runs pip; skips the test where the build's own requirements cannot be had."""
    command = [sys.executable, "-m", "pip", "--disable-pip-version-check", *map(str, arguments)]
    done = subprocess.run(command, cwd=cwd, capture_output=True, text=True, timeout=WAIT)
    if re.search(r"No matching distribution found for (setuptools|wheel)", done.stdout + done.stderr):
        pytest.skip("setuptools, which builds the wheel, cannot be fetched here")
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> Path:
    """The wheel of this checkout, built beside it so that nothing is left in it."""
    source = tmp_path_factory.mktemp("source")
    everywhere = shutil.ignore_patterns("__pycache__", ".*", "*.egg-info")
    made_here = {"runs", "report", "site", "build", "dist"}  # ghost_jax/runs is a package

    def ignored(folder: str, names: list[str]) -> set[str]:
        return everywhere(folder, names) | (made_here if Path(folder) == ROOT else set())

    shutil.copytree(ROOT, source, ignore=ignored, dirs_exist_ok=True)
    pip("wheel", "--no-deps", f"--wheel-dir={source / 'wheels'}", ".", cwd=source)
    (built,) = (source / "wheels").iterdir()
    return built


def test_the_wheel_holds_the_packages_and_the_recipes_and_nothing_else(wheel):
    """`launch` is a name of everybody's, and records of runs are no part of a program."""
    with zipfile.ZipFile(wheel) as file:
        names = {name for name in file.namelist() if ".dist-info/" not in name}
    wanted = {
        str(path.relative_to(ROOT))
        for package in SHIPPED
        for path in (ROOT / package).rglob("*")
        if path.is_file() and "__pycache__" not in path.parts and "records" not in path.parts
    }
    assert names == wanted
    assert "ghost_jax/data/sources/pack/attack.tsv" in names
    assert {"configs/chat_v5.py", "configs/sweeps/lr.py"} <= names


def test_the_wheel_is_of_this_version_and_asks_for_what_runs_it(wheel):
    assert wheel.name == f"ghost_jax-{ghost_jax.__version__}-py3-none-any.whl"
    with zipfile.ZipFile(wheel) as file:
        (metadata,) = (file.read(name).decode() for name in file.namelist() if name.endswith("/METADATA"))
    asked = re.findall(r"^Requires-Dist: (.+)$", metadata, re.MULTILINE)
    pinned = [line.partition("#")[0].strip() for line in (ROOT / "requirements.txt").read_text().splitlines()]
    assert asked == [line for line in pinned if line]


def test_the_recipes_of_an_installation_are_found_from_any_folder_beside_packages_of_the_same_names(wheel, tmp_path):
    with zipfile.ZipFile(wheel) as file:
        file.extractall(tmp_path / "installed")
    for name in ("configs", "evals"):
        (tmp_path / "mine" / name).mkdir(parents=True)
        (tmp_path / "mine" / name / "__init__.py").touch()
    environment = os.environ | {"PYTHONPATH": str(tmp_path / "installed"), "XDG_CACHE_HOME": str(tmp_path / "cache")}
    command = [sys.executable, "-m", "ghost_jax.sweep", "--config=configs/sweeps/lr.py:nano", "--dry_run"]
    done = subprocess.run(command, cwd=tmp_path / "mine", env=environment, capture_output=True, text=True, timeout=WAIT)
    assert (done.returncode, done.stderr) == (0, "")
    assert len(done.stdout.splitlines()) == 15
    assert str(tmp_path / "installed" / "configs" / "chat_v5.py") in done.stdout


@pytest.mark.slow
def test_every_command_explains_itself_from_an_empty_folder(wheel, tmp_path):
    installed, empty = tmp_path / "installed", tmp_path / "empty"
    empty.mkdir()
    pip("install", "--no-deps", f"--target={installed}", wheel, cwd=empty)
    environment = os.environ | {"PYTHONPATH": str(installed), "XDG_CACHE_HOME": str(tmp_path / "cache")}

    def asked(name: str) -> subprocess.CompletedProcess:
        command = [sys.executable, "-m", name, "--help"]
        return subprocess.run(command, cwd=empty, env=environment, capture_output=True, text=True, timeout=WAIT)

    with ThreadPoolExecutor(2) as pool:
        said = dict(zip(COMMANDS, pool.map(asked, COMMANDS), strict=True))
    assert len(said) > 12
    for name, done in said.items():
        assert (done.returncode, done.stderr) == (0, ""), (name, done.stderr)
        assert done.stdout.startswith(f"usage: python -m {name} "), name
        silent = re.findall(r"^  (--\w+)(?: \S+)?$(?!\n    )", done.stdout, re.MULTILINE)
        assert not silent, f"{name} says nothing of {silent}"
    assert not list(empty.iterdir())
