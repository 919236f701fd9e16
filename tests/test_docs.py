"""The pages that a person reads: their links and names of files exist, and the first pages stay short."""

import re
from pathlib import Path

import pytest
import yaml

from tests.conftest import ROOT

PAGES = [*sorted(ROOT.glob("*.md")), *sorted((ROOT / "docs").rglob("*.md"))]
GUIDES = [page for page in PAGES if page.name not in ("CHANGELOG.md", "RESULTS.md", "extending.md")]
LINK = re.compile(r"\]\((?!https?://|#)([^)#\s]+)[^)]*\)")
FILE = re.compile(r"`((?:ghost_jax|evals|launch|configs|tests)/[\w/.-]+\.(?:py|sh|sbatch|json|md))`")
MOST_LINES = {"README.md": 100, "WORKSPACE.md": 90}


def text_of(page: Path) -> str:
    return page.read_text(encoding="utf-8")


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_and_names_of_files_lead_to_files(page):
    assert not [link for link in LINK.findall(text_of(page)) if not (page.parent / link).exists()]
    if page in GUIDES:
        assert not [name for name in FILE.findall(text_of(page)) if not (ROOT / name).exists()]


@pytest.mark.parametrize("page", GUIDES, ids=lambda page: str(page.relative_to(ROOT)))
def test_commands_and_configs_that_a_page_names_exist(page):
    text = text_of(page)
    for name in re.findall(r"python -m ((?:ghost_jax|evals|launch|tests)\.[\w.]+\w)", text):
        assert (ROOT / f"{name.replace('.', '/')}.py").exists(), name
    for name in re.findall(r"configs/[\w/]+\.py", text):
        assert (ROOT / name).exists(), name
    targets = set(re.findall(r"^([\w-]+):", text_of(ROOT / "Makefile"), re.MULTILINE))
    assert set(re.findall(r"`make ([\w-]+)", text)) <= targets


def test_every_command_is_on_the_page_of_commands():
    listed = text_of(ROOT / "docs" / "commands.md")
    commands = [path for package in ("ghost_jax", "evals", "launch") for path in sorted((ROOT / package).rglob("*.py"))]
    names = [
        ".".join(path.relative_to(ROOT).with_suffix("").parts)
        for path in commands
        if 'if __name__ == "__main__":' in text_of(path)
    ]
    assert len(names) > 12
    assert not [name for name in names if f"python -m {name}" not in listed]


@pytest.mark.parametrize("name", MOST_LINES)
def test_the_first_pages_are_short(name):
    assert len(text_of(ROOT / name).splitlines()) <= MOST_LINES[name]


def test_every_package_and_every_module_is_on_the_map():
    shown = text_of(ROOT / "WORKSPACE.md")
    for package in ("ghost_jax", "evals", "launch"):
        for path in sorted((ROOT / package).rglob("*.py")):
            if path.name != "__init__.py":
                one_of_many = path.parent.name in ("sources", "formats")
                assert (f"{path.parent.name}/" if one_of_many else path.stem) in shown, path


def test_results_in_the_readme_are_those_of_the_results():
    rows = [line for line in text_of(ROOT / "README.md").splitlines() if line.startswith("| ")]
    assert len(rows) == 6  # a header and four rows
    assert not set(rows) - set(text_of(ROOT / "RESULTS.md").splitlines())


def test_every_page_is_in_the_navigation_of_the_site():
    def pages(part: object) -> list[str]:
        match part:
            case str():
                return [part]
            case dict():
                return [page for each in part.values() for page in pages(each)]
            case list():
                return [page for each in part for page in pages(each)]
        return []

    nav = yaml.safe_load(text_of(ROOT / "mkdocs.yml"))["nav"]
    assert sorted(pages(nav)) == sorted(str(page.relative_to(ROOT / "docs")) for page in PAGES if "docs" in page.parts)
