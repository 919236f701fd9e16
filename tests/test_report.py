"""`python -m ghost_jax.report`: every number comes from a run's records, and the page stands on its own."""

import json
import re
import shutil
import statistics

import matplotlib.image
import pytest

from ghost_jax.report import find_runs, write
from tests.conftest import ROOT, score_of, updates_of

NOTE = "<script>alert('x')</script> & more"


@pytest.fixture(scope="module")
def report(ghost, tiny_run, tmp_path_factory):
    """The report of a folder with the finished chat run, its base, and a run that was cut short with an odd note."""
    runs, out = tmp_path_factory.mktemp("runs"), tmp_path_factory.mktemp("report")
    shutil.copytree(tiny_run.base, runs / "base")
    shutil.copytree(tiny_run.workdir, runs / "chat")
    cut = shutil.copytree(tiny_run.workdir, runs / "cut", ignore=shutil.ignore_patterns("status.json", "evals"))
    (cut / "metrics.jsonl").write_text("".join(updates_of(tiny_run.workdir)[:3]) + '{"step": 4, "lo')
    data = json.loads((cut / "data.json").read_text())
    (cut / "data.json").write_text(json.dumps(data | {"notes": [NOTE]}))
    result = ghost("ghost_jax.report", f"--runs={runs}", f"--out={out}")
    assert result.stdout.strip() == str(out / "index.html")
    return out


def rows_of(report) -> dict[str, dict[str, str]]:
    """Returns the table of RESULTS.md, a dict a run."""
    lines = [line for line in (report / "RESULTS.md").read_text().splitlines() if line.startswith("|")]
    header, _, *rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    return {row[0]: dict(zip(header, row, strict=True)) for row in rows}


def test_the_numbers_are_those_of_the_records(report, tiny_run):
    rows, score = rows_of(report), score_of(tiny_run.workdir)
    lines = [json.loads(line) for line in updates_of(tiny_run.workdir)]
    last = lines[-1]
    assert rows.keys() == {"base", "chat", "cut"}
    low, high = (f"{100 * bound:.1f}" for bound in score["headline"]["ci95"])
    assert rows["chat"] == {
        "run": "chat",
        "parameters": "43,232",
        "machine": json.loads((tiny_run.workdir / "environment.json").read_text())["machine"],
        "tokens/s": f"{statistics.median(line['tokens_per_s'] for line in lines):,.0f}",
        "recipe": "cot x2 + mcq x5 + qa x1 + small_talk x8",
        "steps": "8",
        "lr": "0.001",
        "val": f"{last['val_loss']:.3f}",
        "val shared": f"{last['val_loss_shared']:.3f}",
        "items": f"held-out questions of this project, not CTIBench (n={score['n']}, closed book)",
        "accuracy over orders (95%)": f"{100 * score['headline']['accuracy']:.1f} ({low} to {high})",
        "published order": f"{100 * score['single_order']:.1f}",
        "verdict": score["verdict"].replace("latched", "LATCHED"),
    }
    assert rows["base"]["recipe"] == "pretraining"
    assert rows["base"]["verdict"] == "—"


def test_an_unfinished_run_is_labelled(report):
    row = rows_of(report)["cut"]
    assert (row["steps"], row["val"], row["verdict"]) == ("3 (unfinished)", "—", "—")
    assert "3 (unfinished)" in (report / "index.html").read_text()


def test_the_pictures_are_pictures(report):
    pictures = {path.name: matplotlib.image.imread(path) for path in report.glob("*.png")}
    assert pictures.keys() == {
        "base-loss.png",
        "chat-loss.png",
        "chat-ctibench-accuracy.png",
        "chat-ctibench-letters.png",
        "cut-loss.png",
    }
    for name, pixels in pictures.items():
        assert min(pixels.shape[:2]) > 200, name
        assert pixels.std() > 0, name


def test_the_page_stands_on_its_own_and_takes_notes_as_text(report):
    page = (report / "index.html").read_text()
    references = re.findall(r"""(?:src|href|url)\s*[=(]\s*["']?([^"'\s>)]+)""", page)
    assert references
    assert all(reference.startswith("data:image/png;base64,") for reference in references)
    assert len(references) == len(list(report.glob("*.png")))
    assert "THIS IS NOT CTIBENCH" in page
    assert "<script" not in page
    assert "&lt;script&gt;alert" in page


def test_a_folder_without_runs_is_refused(ghost, tmp_path):
    said = ghost.refused("ghost_jax.report", f"--runs={tmp_path}", f"--out={tmp_path / 'report'}")
    assert said.startswith(f"There is no run in {tmp_path}.")
    assert not (tmp_path / "report").exists()


def test_the_results_in_the_repository_are_those_of_its_records(tmp_path):
    write(find_runs(ROOT / "evals" / "records"), tmp_path)
    assert (tmp_path / "RESULTS.md").read_text() == (ROOT / "RESULTS.md").read_text(), "run `make results`"
