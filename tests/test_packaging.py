"""What `pip install .` gives: the packages with their data files, the recipes, and every command from any folder."""

import importlib.util
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
from ghost_jax.__main__ import COMMANDS as names
from ghost_jax.__main__ import main
from tests.conftest import ROOT, WAIT

SHIPPED = ("ghost_jax", "evals", "configs")
COMMANDS = [
    ".".join(path.relative_to(ROOT).with_suffix("").parts)
    for package in SHIPPED
    for path in sorted((ROOT / package).rglob("*.py"))
    if 'if __name__ == "__main__":' in path.read_text(encoding="utf-8")
]


def pip(*arguments: str | Path, cwd: Path) -> None:
    """Runs pip; skips the test where the build's own requirements cannot be downloaded."""
    command = [sys.executable, "-m", "pip", "--disable-pip-version-check", *map(str, arguments)]
    done = subprocess.run(command, cwd=cwd, capture_output=True, text=True, timeout=WAIT)
    if re.search(r"No matching distribution found for (setuptools|wheel)", done.stdout + done.stderr):
        pytest.skip("setuptools, which builds the wheel, cannot be downloaded here")
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> Path:
    """The wheel of this checkout, built from a copy."""
    source = tmp_path_factory.mktemp("source")
    for package in (*SHIPPED, "launch", "tests"):
        shutil.copytree(ROOT / package, source / package, ignore=shutil.ignore_patterns("__pycache__", ".*"))
    for path in ROOT.glob("*.*"):
        if path.is_file():
            shutil.copy(path, source)
    pip("wheel", "--no-deps", f"--wheel-dir={source / 'wheels'}", ".", cwd=source)
    (built,) = (source / "wheels").iterdir()
    return built


def test_the_wheel_holds_the_packages_the_recipes_and_the_requirements(wheel):
    assert wheel.name == f"ghost_jax-{ghost_jax.__version__}-py3-none-any.whl"
    with zipfile.ZipFile(wheel) as file:
        names = {name for name in file.namelist() if ".dist-info/" not in name}
        (metadata,) = (file.read(name).decode() for name in file.namelist() if name.endswith("/METADATA"))
    wanted = {
        str(path.relative_to(ROOT))
        for package in SHIPPED
        for path in (ROOT / package).rglob("*")
        if path.is_file() and "__pycache__" not in path.parts and "records" not in path.parts
    }
    assert names == wanted
    assert "ghost_jax/data/sources/pack/attack.tsv" in names
    assert {"configs/chat_v5.py", "configs/sweeps/lr.py"} <= names
    pinned = [line.partition("#")[0].strip() for line in (ROOT / "requirements.txt").read_text().splitlines()]
    assert re.findall(r"^Requires-Dist: (.+)$", metadata, re.MULTILINE) == [line for line in pinned if line]


@pytest.mark.slow
def test_the_recipes_of_an_installation_are_found_from_any_folder_beside_packages_of_the_same_names(wheel, tmp_path):
    with zipfile.ZipFile(wheel) as file:
        file.extractall(tmp_path / "installed")
    for name in ("configs", "evals"):
        (tmp_path / "mine" / name).mkdir(parents=True)
        (tmp_path / "mine" / name / "__init__.py").write_text("raise ImportError('another package')\n")
    environment = os.environ | {"PYTHONPATH": str(tmp_path / "installed"), "XDG_CACHE_HOME": str(tmp_path / "cache")}
    command = [sys.executable, "-m", "ghost_jax", "sweep", "--config=lr:nano", "--dry_run"]
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
        helps = dict(zip(COMMANDS, pool.map(asked, COMMANDS), strict=True))
    assert len(helps) > 12
    for name, done in helps.items():
        assert (done.returncode, done.stderr) == (0, ""), (name, done.stderr)
        assert done.stdout.startswith("usage: "), name
        silent = re.findall(r"^  (--\w+)(?: \S+)?$(?!\n    )", done.stdout, re.MULTILINE)
        assert not silent, f"{name} has no help for {silent}"
    assert not list(empty.iterdir())


def test_ghost_names_every_command_and_refuses_others(capsys):
    assert main(["--help"]) == 0
    listed = capsys.readouterr().out
    for name, (module, does) in names.items():
        assert f"{name} " in listed
        assert does in listed
        assert importlib.util.find_spec(module)
    assert main(["trian"]) == 2
    assert '"train"' in capsys.readouterr().err
