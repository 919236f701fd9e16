"""The tree keeps its shape: imports run down the layers, no cycles, nothing unexpected at the top, no file too long."""

import ast
import subprocess
from collections.abc import Iterator
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

from ghost_jax.text.tokenizer import SPECIALS

ROOT = Path(__file__).parents[1]
PACKAGES = ("ghost_jax", "evals", "configs", "launch")

# From the bottom up. Root files of `ghost_jax`, `evals` and `launch` are commands and stand on top; folders are the
# library. A module imports from layers below its own and from packages of its own layer, but then never from the other
# of `ghost_jax` and `evals`; no two packages import one another.
EVALS = ("evals.items", "evals.analysis", "evals.answering", "evals.overlap", "evals.open_book", "evals.tasks")
LAYERS = (
    ("ghost_jax.core", "ghost_jax.model"),
    ("ghost_jax.parallel", "ghost_jax.text"),
    ("ghost_jax.config",),
    ("ghost_jax.data",),
    ("ghost_jax.training", "ghost_jax.runs", "ghost_jax.inference"),
    (*EVALS, "ghost_jax.reporting"),
    ("ghost_jax.hub", "ghost_jax.sweeps", "ghost_jax.server"),
)
COMMANDS = len(LAYERS)
# Training prepares data as well: these commands are part of the library.
LIBRARY_COMMANDS = ("ghost_jax.data.prepare", "ghost_jax.data.show", "ghost_jax.data.fetch")
TOP_LEVEL = {
    *PACKAGES,
    *("tests", "README.md", "WORKSPACE.md", "RESULTS.md", "CHANGELOG.md", "SECURITY.md"),
    *("Makefile", "pyproject.toml", "LICENSE", ".ci", ".gitignore", "docs", "mkdocs.yml"),
    *("Dockerfile", ".dockerignore"),
}
# Their __init__.py: the tables of datasets and sources, which configs are checked against. They import nothing.
TABLES = ("ghost_jax.data.builders", "ghost_jax.data.sources")
LONGEST = 400  # lines
MOST_MODULES = 12  # of a folder


def name_of(path: Path) -> str:
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


SOURCES = {name_of(path): path for package in PACKAGES for path in sorted((ROOT / package).rglob("*.py"))}
# A package whose __init__.py is empty needs no layer of its own: there is nothing in it to import.
MODULES = {name: path for name, path in SOURCES.items() if path.read_text(encoding="utf-8").strip()}


def layer_of(module: str) -> tuple[int, str] | None:
    """The layer of a module and its package there, or None where it has no place."""
    parts = module.split(".")
    if module == "ghost_jax":  # the version, and how commands are started
        return -1, module
    if module in TABLES:
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
            names = [(f"{node.module}.{alias.name}", node.module) for alias in node.names]
            found = [module if module in SOURCES else package for module, package in names]
        else:
            continue
        yield from ((node.lineno, name) for name in found if name.split(".")[0] in (*PACKAGES, "tests"))


def test_every_module_has_a_layer_and_a_readable_size():
    assert [name for name in MODULES if layer_of(name) is None] == [], "add their package to LAYERS"
    assert all(name in SOURCES for name in LIBRARY_COMMANDS)
    files = [*MODULES.values(), *(ROOT / "tests").rglob("*.py")]
    lines = {path: len(path.read_text(encoding="utf-8").splitlines()) for path in files}
    assert {path: count for path, count in lines.items() if count > LONGEST} == {}, "make two files of each"
    folders = {path.parent for path in SOURCES.values()} - {ROOT / "configs"}
    assert [folder for folder in folders if len(list(folder.glob("*.py"))) > MOST_MODULES] == []


@pytest.mark.parametrize("module", MODULES)
def test_imports_run_down_the_layers(module):
    place = layer_of(module)
    assert place, "add its package to LAYERS"
    layer, package = place
    for line, name in imports_of(MODULES[module]):
        where = f"{MODULES[module].relative_to(ROOT)}:{line} imports {name}"
        assert not name.startswith("tests"), where
        below, other = layer_of(name)
        assert below <= layer, f"{where}, a layer above"
        beside = below == layer < COMMANDS and package.split(".")[0] != other.split(".")[0]
        assert not beside, f"{where}, of the other package in its layer"
        if module.startswith("evals"):
            assert name not in ("ghost_jax.train", "ghost_jax.runs.plan"), f"{where}, the trainer"


def test_no_two_packages_import_one_another():
    imported: dict[str, set[str]] = {}
    for module, path in MODULES.items():
        layer, package = layer_of(module)
        if layer < COMMANDS:
            others = {layer_of(name)[1] for _, name in imports_of(path)} - {package}
            imported.setdefault(package, set()).update(others)
    TopologicalSorter(imported).prepare()  # raises CycleError


def test_nothing_unforeseen_lies_at_the_top_level():
    if not (ROOT / ".git").exists():
        pytest.skip("not a git checkout")
    listed = subprocess.run(["git", "-C", str(ROOT), "ls-files", "-z"], capture_output=True, text=True, check=True)
    names = {path.split("/")[0] for path in listed.stdout.split("\0") if path}
    strangers = {name for name in names - TOP_LEVEL if not (name.startswith("requirements") and name.endswith(".txt"))}
    assert not strangers


def test_only_the_vocabulary_names_begin_end_and_padding():
    """Elsewhere such a name would be looked up in a vocabulary that has another one."""
    names = {"PAD", "BOS", "EOS", "UNK", "SPECIALS"}
    for module, path in MODULES.items():
        nodes = list(ast.walk(ast.parse(path.read_text(encoding="utf-8"))))
        found = {alias.name for node in nodes if isinstance(node, ast.ImportFrom) for alias in node.names} & names
        found |= {node.value for node in nodes if isinstance(node, ast.Constant) and node.value in SPECIALS}
        allowed = module.startswith(("ghost_jax.text", "ghost_jax.hub.vocabulary"))
        assert allowed or not found, f"{module} names {found}"
