"""The pages: their links, files, commands and figures exist, the first ones stay short, and the notebook runs."""

import json
import re

import pytest
import yaml

from tests.conftest import ROOT

PAGES = [*sorted(ROOT.glob("*.md")), *sorted((ROOT / "docs").rglob("*.md"))]
GUIDES = [page for page in PAGES if page.name not in ("CHANGELOG.md", "RESULTS.md", "extending.md")]
LINK = re.compile(r"\]\((?!https?://|#)([^)#\s]+)[^)]*\)")
FILE = re.compile(r"`((?:ghost_jax|evals|launch|configs|tests)/[\w/.-]+\.(?:py|sh|sbatch|json|md))`")
MOST_LINES = {"README.md": 100, "WORKSPACE.md": 90}
MODULES = [path for top in ("ghost_jax", "evals", "launch") for path in sorted((ROOT / top).rglob("*.py"))]


def text_of(name: str) -> str:
    return (ROOT / name).read_text(encoding="utf-8")


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_what_a_page_names_exists(page):
    text = text_of(page)
    assert [link for link in LINK.findall(text) if not (page.parent / link).exists()] == []
    assert len(text.splitlines()) <= MOST_LINES.get(page.name, 10**6)
    if page in GUIDES:
        files = [*FILE.findall(text), *re.findall(r"configs/[\w/]+\.py", text)]
        commands = re.findall(r"python -m ((?:ghost_jax|evals|launch|tests)\.[\w.]+\w)", text)
        files += [f"{name.replace('.', '/')}.py" for name in commands]
        assert [name for name in files if not (ROOT / name).exists()] == []
        targets = set(re.findall(r"^([\w-]+):", text_of("Makefile"), re.MULTILINE))
        assert set(re.findall(r"`make ([\w-]+)", text)) <= targets


def test_every_command_and_every_module_has_its_place_on_a_page():
    commands, tree = text_of("docs/commands.md"), text_of("WORKSPACE.md")
    for path in MODULES:
        name = ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__main__")
        if 'if __name__ == "__main__":' in text_of(path):
            assert f"python -m {name}" in commands
        one_of_many = path.parent.name in ("sources", "formats", "builders")
        assert path.name == "__init__.py" or (f"{path.parent.name}/" if one_of_many else path.stem) in tree, path


def test_results_in_the_readme_are_those_of_the_results():
    rows = [line for line in text_of("README.md").splitlines() if line.startswith("| ")]
    assert len(rows) == 8  # two tables, of two and of three rows
    assert not set(rows) - set(text_of("RESULTS.md").splitlines())


def test_every_page_is_in_the_navigation_of_the_site():
    listed = re.findall(r"[\w/-]+\.md", str(yaml.safe_load(text_of("mkdocs.yml"))["nav"]))
    assert sorted(listed) == sorted(str(page.relative_to(ROOT / "docs")) for page in (ROOT / "docs").rglob("*.md"))


@pytest.mark.slow
def test_the_notebook_runs_from_top_to_bottom(ghost, tmp_path):
    cells = json.loads((ROOT / "docs" / "tutorial.ipynb").read_text(encoding="utf-8"))["cells"]
    code = ["".join(cell["source"]) for cell in cells if cell["cell_type"] == "code"]
    assert not any(cell.get("outputs") for cell in cells)
    (tmp_path / "tutorial.py").write_text("\n\n".join(code))
    environment = {"PYTHONPATH": f"{ROOT}:{tmp_path}", "MPLBACKEND": "agg", "TMPDIR": str(tmp_path)}
    printed = ghost("tutorial", env=environment, cwd=tmp_path).stdout
    assert "over all orders" in printed
    assert "Initial Access\n" in printed
