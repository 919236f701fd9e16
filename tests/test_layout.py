"""The house stays in order: imports run one way, nothing unforeseen at the top level, no file too long to read."""

import ast
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGES = ("ghost_jax", "evals", "configs", "launch")

# From the ground up. A module imports from floors below its own; rooms of one floor do not know each other. A name
# stands for the module or for everything in the package, whose own modules may import one another.
FLOORS: tuple[tuple[str, ...], ...] = (
    ("ghost_jax",),  # the version alone
    (
        "ghost_jax.errors",
        "ghost_jax.progress",
        "ghost_jax.shortcuts",
        "ghost_jax.chips",
        "ghost_jax.watch",
        "ghost_jax.cropping",
    ),
    ("ghost_jax.paths", "ghost_jax.whole"),
    ("ghost_jax.runtime",),
    ("ghost_jax.text",),
    ("ghost_jax.config_domains", "ghost_jax.config_files"),
    ("ghost_jax.config", "ghost_jax.sweep_grid"),
    ("ghost_jax.data.prose", "ghost_jax.data.published"),
    ("ghost_jax.data.records",),
    ("ghost_jax.retrieve", "ghost_jax.data.duplicates"),
    ("ghost_jax.data.sources",),
    ("ghost_jax.data.download", "ghost_jax.data.store", "ghost_jax.data.array_record", "ghost_jax.data.packing"),
    ("ghost_jax.data.fetch", "ghost_jax.data.builders"),
    ("ghost_jax.data.corpus",),
    ("ghost_jax.data.windows", "ghost_jax.data.conversations", "ghost_jax.data.mixture"),
    ("ghost_jax.data.prepare", "ghost_jax.data.mixture_table"),
    ("ghost_jax.data.show",),
    ("ghost_jax.model",),
    ("configs",),
    ("ghost_jax.parallel", "ghost_jax.hf"),
    ("ghost_jax.cross_entropy",),
    ("ghost_jax.optim", "ghost_jax.loss", "ghost_jax.sampling"),
    ("ghost_jax.step", "ghost_jax.generate"),
    ("ghost_jax.validation", "ghost_jax.checkpoint", "ghost_jax.conversation"),
    ("ghost_jax.metrics", "ghost_jax.run_dir", "ghost_jax.initial", "ghost_jax.interrupt"),
    ("ghost_jax.transcript",),
    ("ghost_jax.chat", "ghost_jax.journal", "ghost_jax.import_model"),
    ("evals",),
    ("ghost_jax.report_table", "ghost_jax.report_records"),
    ("ghost_jax.report_pictures", "ghost_jax.report_glance", "ghost_jax.report_learned"),
    ("ghost_jax.report",),
    ("ghost_jax.channel",),
    ("ghost_jax.card",),
    ("ghost_jax.export",),
    ("ghost_jax.plan",),
    ("ghost_jax.train",),
    ("ghost_jax.sweep_curves",),
    ("ghost_jax.sweep_jobs", "ghost_jax.sweep_table"),
    ("ghost_jax.sweep",),
    ("launch",),
)
# What a module may import, where that is less than everything below it.
GROUND = {
    "ghost_jax",
    "ghost_jax.cropping",
    "ghost_jax.errors",
    "ghost_jax.paths",
    "ghost_jax.progress",
    "ghost_jax.whole",
}
# It reads run records and nothing else; the sizes count the parameters of a recorded config.
ONLY = {
    "ghost_jax.report": GROUND
    | {
        *("ghost_jax.report_records", "ghost_jax.report_table", "ghost_jax.report_pictures"),
        *("ghost_jax.report_glance", "ghost_jax.report_learned"),
    },
    "ghost_jax.report_records": GROUND | {"ghost_jax.metrics"},
    "ghost_jax.report_learned": GROUND,
    "ghost_jax.report_pictures": GROUND | {"ghost_jax.report_table"},
    "ghost_jax.report_glance": GROUND | {"ghost_jax.report_table"},
    "ghost_jax.report_table": GROUND | {"ghost_jax.model.sizes"},
}
TOP_LEVEL = {
    *PACKAGES,
    *("tests", "README.md", "WORKSPACE.md", "RESULTS.md", "CHANGELOG.md", "SECURITY.md"),
    *("Makefile", "pyproject.toml", "LICENSE", ".ci", ".gitignore"),
}
LONGEST = 400  # lines


def name_of(path: Path) -> str:
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


SOURCES = {name_of(path): path for package in PACKAGES for path in sorted((ROOT / package).rglob("*.py"))}
# A package whose __init__.py is empty needs no floor of its own: there is nothing in it to import.
MODULES = {name: path for name, path in SOURCES.items() if path.read_text(encoding="utf-8").strip()}


def floor_of(module: str) -> tuple[int, str] | None:
    """The floor of a module and the name there that it goes by, or None: the longest name that holds it."""
    rooms = [(len(room), floor, room) for floor, rooms in enumerate(FLOORS) for room in rooms]
    holds = [room for room in rooms if f"{module}.".startswith(f"{room[2]}.") and room[2] != "ghost_jax"]
    return max(holds)[1:] if holds else (0, "ghost_jax") if module == "ghost_jax" else None


def imports_of(path: Path) -> Iterator[tuple[int, str]]:
    """Yields the line and the name of every module of ours that a file imports, inside functions as well."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, f"{path}:{node.lineno} imports relatively"
            # `from ghost_jax.data import store` imports a module, `from ghost_jax.step import TrainState` a name.
            found = [
                whole if (whole := f"{node.module}.{alias.name}") in SOURCES else node.module for alias in node.names
            ]
        else:
            continue
        yield from ((node.lineno, name) for name in found if name.split(".")[0] in (*PACKAGES, "tests"))


def test_every_module_has_a_floor():
    homeless = [name for name in MODULES if floor_of(name) is None]
    assert not homeless, f"say in FLOORS where they stand: {homeless}"


@pytest.mark.parametrize("module", [name for name in MODULES if floor_of(name)])
def test_imports_run_one_way(module):
    floor, room = floor_of(module)
    for line, name in imports_of(MODULES[module]):
        where = f"{MODULES[module].relative_to(ROOT)}:{line} imports {name}"
        assert not name.startswith("tests"), where
        there = floor_of(name)
        assert there, f"{where}, which stands on no floor"
        assert there[0] < floor or there[1] == room, f"{where}, which stands no lower ({there[1]})"
        assert module not in ONLY or name in ONLY[module], where


def test_the_evaluator_does_not_know_the_trainer():
    above = {"ghost_jax.train", "ghost_jax.plan"}
    evaluators = [path for name, path in MODULES.items() if name.startswith("evals")]
    assert evaluators
    assert not [path for path in evaluators for _, used in imports_of(path) if used in above]


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
