"""docs/extending.md: a copy of the tree is changed as the page says, and its recipe is trained and scored."""

import json
import re
import shutil
from pathlib import Path

import pytest

from ghost_jax.data.storage.array_record import open_examples
from ghost_jax.data.storage.schema import split_of
from tests.conftest import ROOT, TINY, set_all

PAGE = ROOT / "docs" / "extending.md"
BLOCK = re.compile(r"^`(?P<file>[^`\n]+)`\n\n```(?P<kind>\w+)\n(?P<text>.*?)^```$", re.MULTILINE | re.DOTALL)
GLOSSARY = [f"XQ{letter}" for letter in "ABCDEFGHIJKLMNOPQRST"]
QUIZ = [
    ("Which port number is reserved for encrypted web traffic by default?", "443", "22", "25", "53", 1),
    ("Which tool captures network packets for later inspection?", "A compiler", "A sniffer", "A linker", "A pager", 2),
    ("Which property does a digital signature add to a document?", "Speed", "Color", "Integrity", "Length", 3),
    ("Which team responds first to a breach in a large company?", "Sales", "Legal", "Payroll", "The SOC", 4),
]


def changed(text: str, hunk: str) -> str:
    """Returns a file's text with one hunk of a diff applied; what the hunk replaces must be there once."""
    lines = [line for line in hunk.splitlines() if line]
    before, after = ("".join(f"\n{line[1:]}" for line in lines if line[0] in signs) for signs in (" -", " +"))
    assert text.count(f"{before}\n") == 1, f"{before!r} is there {text.count(before)} times"
    return text.replace(f"{before}\n", f"{after}\n")


def follow(page: str, tree: Path) -> list[str]:
    """Does to a tree what the page says and returns the names of the files."""
    for block in BLOCK.finditer(page):
        path = tree / block["file"]
        if block["kind"] == "diff":
            text = path.read_text(encoding="utf-8")
            for hunk in block["text"].split("@@\n"):
                text = changed(text, hunk)
        else:
            assert not path.exists(), f"{path} is there already"
            text = block["text"]
        path.write_text(text, encoding="utf-8")
    return [block["file"] for block in BLOCK.finditer(page)]


@pytest.fixture(scope="module")
def tree(tmp_path_factory) -> Path:
    """A copy of the packages, extended by the page, and a data folder in it."""
    tree = tmp_path_factory.mktemp("tree")
    for package in ("ghost_jax", "evals", "configs"):
        shutil.copytree(ROOT / package, tree / package, ignore=shutil.ignore_patterns("__pycache__", "records"))
    page = PAGE.read_text(encoding="utf-8")
    assert len(follow(page, tree)) == page.count("\n```") / 2, "a block has no file name above it"
    data = tree / "data"
    (data / "raw").mkdir(parents=True)
    (data / "raw" / "glossary.tsv").write_text("".join(f"{a}\tThe {a.lower()} protocol of tests\n" for a in GLOSSARY))
    rows = [("prompt", "1", "2", "3", "4", "label"), *QUIZ]
    (data / "quiz.csv").write_text("".join(",".join(map(str, row)) + "\n" for row in rows))
    return tree


def test_the_recipe_of_the_page_is_trained_on_its_dataset_and_scored_by_its_evaluation(ghost, tree):
    run = tree / "runs" / "chat"
    small = TINY | {"steps": 2, "eval_every": 2, "optim.warmup_steps": 1}
    flags = set_all(small) + set_all({f"base.{key}": value for key, value in small.items()})
    which = ("--config=configs/chat_flashcards.py:nano", f"--data_dir={tree / 'data'}")
    result = ghost("ghost_jax.train", *which, f"--workdir={run}", *flags, cwd=tree)

    assert re.search(r"flashcards\W+x2\W+\d", result.stdout), result.stdout
    store = json.loads((run / "data.json").read_text())["stores"]["flashcards"]
    rows = open_examples(ghost.cache / "ghost_jax" / "stores" / store, "flashcards", "train")
    asked = {row["id"].decode() for row in rows if row["source"] == b"glossary"}
    assert asked == {f"flashcards/glossary/{acronym}" for acronym in GLOSSARY if split_of(acronym) == "train"}
    report = json.loads((run / "evals" / "quiz.json").read_text())
    assert report["n"] == len(QUIZ)
    assert report["baselines"]["always_A"] == pytest.approx(1 / 4)
    assert "quiz.csv" in result.stdout
    assert (run / "status.json").exists()
