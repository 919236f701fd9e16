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

import evals.audit
import ghost_jax.__main__
from tests.conftest import ROOT, WAIT

SHIPPED = ("ghost_jax", "evals", "configs")
COMMANDS = [
    ".".join(path.relative_to(ROOT).with_suffix("").parts)
    for package in SHIPPED
    for path in sorted((ROOT / package).rglob("*.py"))
    if 'if __name__ == "__main__":' in path.read_text(encoding="utf-8")
]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> Path:
    source = tmp_path_factory.mktemp("source")
    for package in (*SHIPPED, "launch", "tests"):
        shutil.copytree(ROOT / package, source / package, ignore=shutil.ignore_patterns("__pycache__", ".*"))
    for path in ROOT.glob("*.*"):
        if path.is_file():
            shutil.copy(path, source)
    words = ["-m", "pip", "--disable-pip-version-check", "wheel", "--no-deps", "--wheel-dir=wheels", "."]
    done = subprocess.run([sys.executable, *words], cwd=source, capture_output=True, text=True, timeout=WAIT)
    if re.search(r"No matching distribution found for (setuptools|wheel)", done.stdout + done.stderr):
        pytest.skip("setuptools, which builds the wheel, cannot be downloaded here")
    assert done.returncode == 0, done.stdout + done.stderr
    (built,) = (source / "wheels").iterdir()
    return built


def test_the_wheel_holds_the_packages_the_recipes_and_the_requirements(wheel):
    assert wheel.name == f"ghost_jax-{ghost_jax.__version__}-py3-none-any.whl"
    with zipfile.ZipFile(wheel) as file:
        names = {name for name in file.namelist() if ".dist-info/" not in name}
        (metadata,) = (file.read(name).decode() for name in file.namelist() if name.endswith("/METADATA"))
    paths = [path.relative_to(ROOT) for package in SHIPPED for path in (ROOT / package).rglob("*") if path.is_file()]
    assert names == {str(path) for path in paths if not {"__pycache__", "records"} & {*path.parts}}
    pinned = [line.partition("#")[0].strip() for line in (ROOT / "requirements.txt").read_text().splitlines()]
    assert re.findall(r"^Requires-Dist: (.+)$", metadata, re.MULTILINE) == [line for line in pinned if line]


@pytest.mark.slow
def test_an_installation_explains_every_command_and_finds_its_recipes_beside_others_of_their_names(wheel, tmp_path):
    with zipfile.ZipFile(wheel) as file:
        file.extractall(tmp_path / "installed")
    environment = os.environ | {"PYTHONPATH": str(tmp_path / "installed"), "XDG_CACHE_HOME": str(tmp_path / "cache")}

    def printed(folder: Path, *words: str) -> str:
        command = [sys.executable, "-m", *words]
        done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=WAIT)
        assert (done.returncode, done.stderr) == (0, ""), words
        return done.stdout

    empty, mine = tmp_path / "empty", tmp_path / "mine"
    empty.mkdir()
    with ThreadPoolExecutor(2) as pool:
        helps = pool.map(lambda name: printed(empty, name, "--help"), COMMANDS)
        for name, text in zip(COMMANDS, helps, strict=True):
            silent = re.findall(r"^  (--\w+)(?: \S+)?$(?!\n    )", text, re.MULTILINE)
            assert not silent, f"{name} has no help for {silent}"
    assert not list(empty.iterdir())
    for name in ("configs", "evals"):
        (mine / name).mkdir(parents=True)
        (mine / name / "__init__.py").write_text("raise ImportError('another package')\n")
    recipe = tmp_path / "installed" / "configs" / "chat_v5.py"
    assert str(recipe) in printed(mine, "ghost_jax", "sweep", "--config=lr:nano", "--dry_run")


def test_ghost_has_commands_alone_and_refuses_other_words(capsys):
    assert {module for module, _ in ghost_jax.__main__.COMMANDS.values()} <= set(COMMANDS)
    assert ghost_jax.__main__.main(["trian"]) == 2
    assert '"train"' in capsys.readouterr().err


@pytest.mark.parametrize("typed", ["python -m evals.audit", "ghost audit"])
def test_a_usage_line_shows_what_was_typed(typed, capsys):
    with pytest.raises(SystemExit):
        evals.audit.main(["--help"]) if "-m" in typed else ghost_jax.__main__.main(["audit", "--help"])
    assert capsys.readouterr().out.startswith(f"usage: {typed} ")
