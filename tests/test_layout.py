"""The tree keeps its shape: imports run down the layers, no cycles, nothing unexpected at the top, no file too long."""

import ast
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGES = ("ghost_jax", "evals", "configs", "launch")

# From the bottom up. Root files of `ghost_jax`, `evals` and `launch` are commands and stand on top; folders are the
# library. A module imports from layers below its own and from packages of its own layer, but then never from the other
# of `ghost_jax` and `evals`; no two packages import one another.
LAYERS: tuple[tuple[str, ...], ...] = (
    ("ghost_jax.core", "ghost_jax.model"),
    ("ghost_jax.parallel", "ghost_jax.text"),
    ("ghost_jax.config",),
    ("ghost_jax.data",),
    ("ghost_jax.training", "ghost_jax.runs", "ghost_jax.inference"),
    (
        *("evals.items", "evals.analysis", "evals.answering", "evals.overlap", "evals.open_book", "evals.tasks"),
        "ghost_jax.reporting",
    ),
    ("ghost_jax.hub", "ghost_jax.sweeps"),
)
COMMANDS = len(LAYERS)
# Data is prepared by training as well as by a command: these commands are part of the library.
LIBRARY_COMMANDS = ("ghost_jax.data.prepare", "ghost_jax.data.show", "ghost_jax.data.fetch")
TOP_LEVEL = {
    *PACKAGES,
    *("tests", "README.md", "WORKSPACE.md", "RESULTS.md", "CHANGELOG.md", "SECURITY.md"),
    *("Makefile", "pyproject.toml", "LICENSE", ".ci", ".gitignore", "docs", "mkdocs.yml"),
}
DATASETS = "ghost_jax.data.builders"  # its __init__.py: the table of datasets, which configs are checked against
LONGEST = 400  # lines


def name_of(path: Path) -> str:
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


SOURCES = {name_of(path): path for package in PACKAGES for path in sorted((ROOT / package).rglob("*.py"))}
# A package whose __init__.py is empty needs no floor of its own: there is nothing in it to import.
MODULES = {name: path for name, path in SOURCES.items() if path.read_text(encoding="utf-8").strip()}


def layer_of(module: str) -> tuple[int, str] | None:
    """The layer of a module and its package there, or None where it has no place."""
    parts = module.split(".")
    if module == "ghost_jax":  # the version, and how commands are started
        return -1, module
    if module == DATASETS:
        return 0, module
    if parts[0] in ("configs", "launch") or (len(parts) == 2 and SOURCES[module].name != "__init__.py"):
        return COMMANDS, parts[0]
    package = ".".join(parts[:2])
    return next(((layer, package) for layer, packages in enumerate(LAYERS) if package in packages), None)


def imports_of(path: Path) -> Iterator[tuple[int, str]]:
    """Yields the line and the name of every module of ours that a file imports, inside functions as well."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, f"{path}:{node.lineno} imports relatively"
            # `from ghost_jax.data import dedup` imports a module, `from ghost_jax.training.step import X` a name.
            found = [
                whole if (whole := f"{node.module}.{alias.name}") in SOURCES else node.module for alias in node.names
            ]
        else:
            continue
        yield from ((node.lineno, name) for name in found if name.split(".")[0] in (*PACKAGES, "tests"))


def test_every_module_has_a_layer():
    assert not [name for name in MODULES if layer_of(name) is None], "add their package to LAYERS"
    assert all(name in SOURCES for name in LIBRARY_COMMANDS)


@pytest.mark.parametrize("module", [name for name in MODULES if layer_of(name)])
def test_imports_run_down_the_layers(module):
    layer, package = layer_of(module)
    for line, name in imports_of(MODULES[module]):
        where = f"{MODULES[module].relative_to(ROOT)}:{line} imports {name}"
        assert not name.startswith("tests"), where
        below, other = layer_of(name)
        assert below <= layer, f"{where}, which stands above"
        beside = below == layer < COMMANDS and package.split(".")[0] != other.split(".")[0]
        assert not beside, f"{where}, which stands beside it in the other package"


def test_no_two_packages_import_one_another():
    arrows = {
        (layer_of(module)[1], layer_of(name)[1])
        for module, path in MODULES.items()
        for _, name in imports_of(path)
        if layer_of(module)[0] < COMMANDS
    }
    reached = {package: {package} for pair in arrows for package in pair}
    for _ in reached:
        for package, other in arrows:
            reached[package] |= reached[other]
    both_ways = {(one, other) for one in reached for other in reached[one] if one != other and one in reached[other]}
    assert not both_ways


def test_the_evaluator_does_not_know_the_trainer():
    above = {"ghost_jax.train", "ghost_jax.runs.plan"}
    evaluators = [path for name, path in MODULES.items() if name.startswith("evals")]
    assert evaluators
    assert not [path for path in evaluators for _, used in imports_of(path) if used in above]


@pytest.mark.parametrize("folder", sorted({path.parent for path in SOURCES.values()} - {ROOT / "configs"}))
def test_no_folder_holds_more_than_a_dozen_modules(folder):
    assert len(list(folder.glob("*.py"))) <= 12, f"{folder.relative_to(ROOT)} is asking to be two folders"


@pytest.mark.parametrize("module", MODULES)
def test_no_source_file_is_too_long(module):
    lines = len(MODULES[module].read_text(encoding="utf-8").splitlines())
    assert lines <= LONGEST, f"{lines} lines: it is asking to be two files"


def test_nothing_unforeseen_lies_at_the_top_level():
    if not (ROOT / ".git").exists():
        pytest.skip("not a git checkout")
    listed = subprocess.run(["git", "-C", str(ROOT), "ls-files", "-z"], capture_output=True, text=True, check=True)
    names = {path.split("/")[0] for path in listed.stdout.split("\0") if path}
    strangers = {name for name in names - TOP_LEVEL if not (name.startswith("requirements") and name.endswith(".txt"))}
    assert not strangers
