"""docs/extending.md: a copy of the tree is changed as the page says, and its recipe is trained and scored."""

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from ghost_jax.data.storage.array_record import open_examples
from ghost_jax.data.storage.schema import split_of
from tests.conftest import ROOT, TINY, set_all

PAGE = ROOT / "docs" / "extending.md"
BLOCK = re.compile(r"^`(?P<file>[^`\n]+)`\n\n```(?P<kind>\w+)\n(?P<text>.*?)^```$", re.MULTILINE | re.DOTALL)
GLOSSARY = [f"XQ{letter}" for letter in "ABCDEFGHIJKLMNOPQRST"]
QUIZ = """prompt,1,2,3,4,label
Which port number is reserved for encrypted web traffic by default?,443,22,25,53,1
Which tool captures network packets for later inspection?,A compiler,A sniffer,A linker,A pager,2
Which property does a digital signature add to a document?,Speed,Color,Integrity,Length,3
Which team responds first to a breach in a large company?,Sales,Legal,Payroll,The SOC,4
"""


def patched(text: str, diff: str) -> str:
    """Returns a file's text with the hunks of a diff applied; what a hunk replaces must be there once."""
    for hunk in diff.split("@@\n"):
        lines = [line for line in hunk.splitlines() if line]
        before, after = ("".join(f"\n{line[1:]}" for line in lines if line[0] in signs) for signs in (" -", " +"))
        assert text.count(f"{before}\n") == 1, f"{before!r} is there {text.count(before)} times"
        text = text.replace(f"{before}\n", f"{after}\n")
    return text


@pytest.fixture
def tree(tmp_path) -> Path:
    """A copy of the packages, extended by the page, and a data folder in it."""
    for package in ("ghost_jax", "evals", "configs"):
        shutil.copytree(ROOT / package, tmp_path / package, ignore=shutil.ignore_patterns("__pycache__", "records"))
    page = PAGE.read_text(encoding="utf-8")
    blocks = list(BLOCK.finditer(page))
    assert len(blocks) == page.count("\n```") / 2, "a block has no file name above it"
    for block in blocks:
        path = tmp_path / block["file"]
        is_diff = block["kind"] == "diff"
        assert path.exists() == is_diff, f"{path}: a diff changes a file, other blocks create one"
        text = patched(path.read_text(encoding="utf-8"), block["text"]) if is_diff else block["text"]
        path.write_text(text, encoding="utf-8")
    (tmp_path / "data" / "raw").mkdir(parents=True)
    glossary = "".join(f"{acronym}\tThe {acronym.lower()} protocol of tests\n" for acronym in GLOSSARY)
    (tmp_path / "data" / "raw" / "glossary.tsv").write_text(glossary)
    (tmp_path / "data" / "quiz.csv").write_text(QUIZ)
    return tmp_path


def test_the_recipe_of_the_page_is_trained_on_its_dataset_and_scored_by_its_evaluation(ghost, tiny_run, tree):
    run = tree / "runs" / "chat"
    flags = set_all(TINY | {"steps": 2, "eval_every": 2, "optim.warmup_steps": 1})
    which = ("--config=configs/chat_flashcards.py:nano", f"--data_dir={tree / 'data'}", f"--base={tiny_run.base}")
    result = ghost("ghost_jax.train", *which, f"--workdir={run}", *flags, cwd=tree)

    assert re.search(r"flashcards\W+x2\W+\d", result.stdout), result.stdout
    store = json.loads((run / "data.json").read_text())["stores"]["flashcards"]
    rows = open_examples(ghost.cache / "ghost_jax" / "stores" / store, "flashcards", "train")
    asked = {row["id"].decode() for row in rows if row["source"] == b"glossary"}
    assert asked == {f"flashcards/glossary/{acronym}" for acronym in GLOSSARY if split_of(acronym) == "train"}
    report = json.loads((run / "evals" / "quiz.json").read_text())
    assert report["n"] == 4
    assert report["baselines"]["always_A"] == pytest.approx(1 / 4)
    assert "quiz.csv" in result.stdout
    assert (run / "status.json").exists()


def test_the_page_passes_the_linter(tree):
    files = [tree / block["file"] for block in BLOCK.finditer(PAGE.read_text(encoding="utf-8"))]
    for words in (["check"], ["format", "--check"]):
        subprocess.run(
            [sys.executable, "-m", "ruff", *words, f"--config={ROOT / 'pyproject.toml'}", *files], check=True, cwd=tree
        )
