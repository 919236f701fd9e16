"""`ghost_jax.report`: every figure is from the records, the page is one file, and what is broken is named."""

import dataclasses
import html
import json
import re
import shutil
import subprocess

import matplotlib.image
import pytest

import ghost_jax
from ghost_jax.core.errors import UserError
from ghost_jax.reporting.plots import accuracy_picture, log_prob_picture, loss_picture, png, study_picture
from ghost_jax.reporting.records import Beside, deeper_runs, find_runs, read_beside
from ghost_jax.reporting.summary import glance_table, story
from ghost_jax.reporting.tables import NONE, notes_of, recipe_of
from ghost_jax.runs import run_record
from ghost_jax.runs.evaluation import LetterLogProbs
from ghost_jax.text.mcq_format import LETTERS
from launch import results
from tests.conftest import ROOT, score_of, updates_of

RECORDS = ROOT / "evals" / "records"
CHAT = RECORDS / "chat_v5-seed0"
NOTE = f"<script>alert('x')</script> {'x' * 300}"
TABLE = [["setting", "verdict"], ["x" * 300, "<b>y</b>"]]
SWEEP = {"name": "lr", "axis": "optim.peak_lr", "settings": [], "notes": [], "table": TABLE}
WHY = "three losses rose: 3.175, 3.285,\n3.403 | the watch"


def make(ghost, runs, out):
    ghost.here("ghost_jax.report", f"--runs={runs}", f"--out={out}")
    return out


@pytest.fixture(scope="module")
def report(ghost, tmp_path_factory):
    """The report of a base, of its chat run, complete, cut short and stopped, of a sweep, and of what lies beside."""
    runs = tmp_path_factory.mktemp("runs")
    shutil.copytree(RECORDS / "pretrain_v05-nano", runs / "base")
    chat = shutil.copytree(CHAT, runs / "chat")
    cut = shutil.copytree(chat, runs / "cut", ignore=shutil.ignore_patterns("status.json", "evals"))
    (cut / "metrics.jsonl").write_text("".join(updates_of(chat)[:3]) + '{"step": 8, "lo')
    data = json.loads((cut / "data.json").read_text())
    (cut / "data.json").write_text(json.dumps(data | {"notes": [NOTE]}))
    stopped = shutil.copytree(cut, runs / "stopped")
    (stopped / "stopped.json").write_text(json.dumps({"step": 3, "reason": WHY}))
    for path in RECORDS.glob("*.json"):
        shutil.copy(path, runs)
    (runs / "sweep.json").write_text(json.dumps(SWEEP))
    shutil.copy(RECORDS / "study.png", runs / "sweep.png")
    return make(ghost, runs, tmp_path_factory.mktemp("report"))


def tables_of(report, heading: str) -> dict[str, dict[str, str]]:
    """Returns a table of RESULTS.md: column -> cell, by the first cell of a row."""
    table = (report / "RESULTS.md").read_text().partition(f"## {heading}\n\n")[2].partition("\n\n")[0]
    header, _, *rows = [re.split(r" (?<!\\)\| ", line.strip("| ")) for line in table.splitlines()]
    return {row[0]: dict(zip(header, row, strict=True)) for row in rows}


def test_the_tables_hold_the_figures_of_the_records(report):
    rows = tables_of(report, "Runs")
    assert list(rows) == ["base", "chat", "cut", "stopped"]
    row, score, last = rows["chat"], score_of(CHAT), json.loads(updates_of(CHAT)[-1])
    accuracy, low, high = (f"{100 * each:.1f}" for each in (score["headline"]["accuracy"], *score["headline"]["ci95"]))
    assert row["accuracy over orders (95%)"] == f"{accuracy} ({low} to {high})"
    assert row["published order"] == f"{100 * score['single_order']:.1f}"
    assert row["verdict"] == score["verdict"].replace("collapsed", "COLLAPSED")
    assert (row["steps"], row["val"], row["LR"]) == (f"{last['step']}", f"{last['val_loss']:.3f}", "1e-3")
    assert row["recipe"] == "Q&A x1 + raw MCQ x5 + CoT MCQ x2 + small talk x8 on pretrain_v05"
    scheduled = {
        "mixture": {"qa": 1.0, "mcq": 0.0, "raft": 0},
        "mixture_schedule": {"20": {"qa": 2.0}, "5": {"mcq": 1.0}},
    }
    assert recipe_of({"data": scheduled}) == "Q&A x1, x2 + raw MCQ x0, x1"
    study = {"study: run": "chat-v5", "study: steps": "2,000", "study: LR": "5e-5", "study: CTIBench": "34.8%"}
    assert study.items() <= row.items()
    assert {rows["base"][column] for column in rows["base"] if "study" in column or column == "verdict"} == {"—"}
    text = (report / "RESULTS.md").read_text()
    assert f"always A {100 * score['baselines']['always_A']:.1f}, " in text
    assert text.splitlines()[-1].startswith(f"Written by ghost_jax {ghost_jax.__version__}.")


def test_unfinished_and_stopped_runs_are_labelled(report):
    rows = tables_of(report, "Runs")
    assert (rows["cut"]["steps"], rows["cut"]["state"], rows["cut"]["verdict"]) == ("4 of 40", "unfinished", "—")
    assert rows["stopped"]["state"] == r"stopped at 3: three losses rose: 3.175, 3.285, 3.403 \| the watch"


def test_the_page_is_one_file_with_every_picture_and_takes_notes_as_text(report):
    pictures = {path.name: path for path in report.glob("*.png")}
    scored = [f"chat-ctibench-{kind}.png" for kind in ("accuracy", "letters", "log-probs", "reliability")]
    trained = [f"{run}-{kind}.png" for run in ("base", "chat", "cut", "stopped") for kind in ("loss", "mixture")]
    assert pictures.keys() == {"study.png", "sweep-lr.png", *scored, *trained}
    for name, path in pictures.items():
        assert min(matplotlib.image.imread(path).shape[:2]) > 200, name
        assert f"Software\0ghost_jax {ghost_jax.__version__}".encode() in path.read_bytes(), name
    page = (report / "index.html").read_text()
    references = re.findall(r"""(?:src|href|url)\s*[=(]\s*["']?([^"'\s>)]+)""", page)
    assert len(references) == len(pictures) == page.count("<figcaption>")
    assert all(reference.startswith("data:image/png;base64,") for reference in references)
    assert "<script" not in page
    assert "&lt;script&gt;alert" in page
    assert score_of(CHAT)["verdict_text"] in page
    assert f"Written by ghost_jax {ghost_jax.__version__}." in page


# The page is loaded into a frame as wide as a phone, and measured with all its parts open.
PHONE = 390  # CSS pixels
FRAME = """<iframe style="width:{width}px;height:800px;border:0" srcdoc="{page}"></iframe><pre></pre><script>
document.querySelector('iframe').onload = event => {{
  const page = event.target.contentDocument;
  page.querySelectorAll('details').forEach(part => part.open = true);
  document.querySelector('pre').textContent = JSON.stringify({{
    pictures: [...page.images].filter(image => image.naturalWidth > 0 && image.alt && image.width > 250).length,
    width: page.scrollingElement.scrollWidth,
    text: page.body.innerText,
  }});
}};</script>"""


@pytest.mark.slow
def test_a_phone_shows_every_picture_and_the_text_of_records_without_scrolling_sideways(report, tmp_path):
    program = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if program is None:
        pytest.skip("there is no Chromium to look at the page with: apt-get install chromium")
    page = html.escape((report / "index.html").read_text())
    (tmp_path / "frame.html").write_text(FRAME.format(width=PHONE, page=page))
    flags = ["--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--no-first-run"]
    flags += [f"--user-data-dir={tmp_path / 'profile'}", "--virtual-time-budget=30000", "--dump-dom"]
    command = [program, *flags, (tmp_path / "frame.html").as_uri()]
    dom = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True).stdout
    shown = json.loads(html.unescape(re.search("<pre>(.+?)</pre>", dom, re.DOTALL)[1]))
    assert shown["pictures"] == len(list(report.glob("*.png")))
    assert shown["width"] <= PHONE
    assert all(text in shown["text"] for text in (NOTE, "<b>y</b>", "What we learned"))


def test_a_name_that_looks_like_mathematics_is_drawn():
    run = dataclasses.replace(run_record.read(CHAT), name="$x_$")
    for figure in (loss_picture(run), study_picture([run])):
        assert png(figure)


def test_a_title_of_any_length_is_inside_the_picture():
    run = run_record.read(CHAT)
    score = run.evals["ctibench"]
    long = dataclasses.replace(score, items=dataclasses.replace(score.items, name="held-out questions, " * 9))
    for figure in (accuracy_picture(long), loss_picture(dataclasses.replace(run, name="chat_facts-" * 18))):
        figure.canvas.draw()
        (title,) = [each.get_window_extent() for each in figure.texts]
        assert title.x1 <= figure.bbox.x1
        assert title.y1 <= figure.bbox.y1


def test_beside_validation_losses_the_training_loss_is_the_language_models():
    run = run_record.read(RECORDS / "campaign" / "facts-nano" / "knowledge-seed0")
    (training,) = [line for line in loss_picture(run).axes[0].lines if line.get_label() == "training"]
    assert training.get_ydata().tolist() == [line["loss_lm"] for line in run.metrics]


def test_every_letter_has_a_curve():
    histogram = LetterLogProbs(edges=(-2.0, -1.0, 0.0), counts=dict.fromkeys(LETTERS, (1, 2)))
    score = dataclasses.replace(run_record.read(CHAT).evals["ctibench"], letter_log_probs=histogram)
    assert len(log_prob_picture(score).axes[0].patches) == len(LETTERS)


def test_an_imported_model_at_a_glance_has_no_command():
    run = run_record.read(CHAT)
    config = run.config | {"spec": "", "imported": {"from": "llama"}}
    run = dataclasses.replace(run, config=config, environment=run_record.Environment())
    assert glance_table([run], Beside())[-1][-1] == NONE


def test_open_and_closed_book_never_share_a_column():
    run = run_record.read(CHAT)
    reads = dataclasses.replace(run.evals["ctibench"], book="open", reader="model")
    gain = {"gain_over_lexical": 0.0123, "gain_over_lexical_ci95": (0.0045, 0.0201)}
    both = dataclasses.replace(reads, reader="both", **gain)
    evals = run.evals | {"ctibench-open-model": reads, "ctibench-open-both": both}
    beside, _ = read_beside(sorted(RECORDS.glob("*.json")))
    rows = glance_table([dataclasses.replace(run, evals=evals)], beside)[1:]
    names = [row[0] for row in rows]
    assert "ours: chat_v5-seed0 reads" in names
    assert any(name.endswith("+1.23 points (+0.45 to +2.01) over the lexical reader alone") for name in names)
    for _, *closed, opened, _ in rows:
        assert set(closed) == {NONE} or opened == NONE
    (lexical,) = beside.lexical
    other = dataclasses.replace(lexical, items=dataclasses.replace(lexical.items, name="own questions"))
    assert len(glance_table([run], dataclasses.replace(beside, lexical=[lexical, other]))) == len(
        glance_table([run], beside)
    )


def test_broken_records_are_named_and_left_out(ghost, tmp_path):
    runs = tmp_path / "runs"
    for name in ("sound", "cut", "foreign", "deep", "untyped"):
        shutil.copytree(RECORDS / "pretrain_v04-nano", runs / name)
        (runs / name / "evals").mkdir()
    (runs / "sound" / "evals" / "other.json").write_text("{}")
    (runs / "cut" / "evals" / "ctibench.json").write_text('{"book": "clo')
    (runs / "foreign" / "config.json").write_text("{}")
    (runs / "deep" / "config.json").write_text("[" * 100_000)
    config = json.loads((runs / "sound" / "config.json").read_text())
    (runs / "untyped" / "config.json").write_text(json.dumps(config | {"steps": "many"}))
    sweep = {"name": "/../../escaped", "axis": "", "settings": [], "notes": []}
    for name, values in (("outside", {}), ("cells", {"name": "n", "table": [[1]]})):
        (runs / f"{name}.json").write_text(json.dumps(sweep | values))
        (runs / f"{name}.png").write_bytes(b"")
    (runs / "notes.json").write_text("[1, 2]")
    (runs / "torn.json").write_text("[1, 2")
    report = make(ghost, runs, tmp_path / "report")
    assert list(tables_of(report, "Runs")) == ["sound"]
    left_out = (report / "RESULTS.md").read_text().partition("## Left out")[2]
    for run in ("foreign", "deep", "untyped"):
        assert str(runs / run / "config.json") in left_out
    for path in ("cut/evals/ctibench.json", "torn.json", "outside.json", "cells.json"):
        assert str(runs / path) in left_out
    assert not list(tmp_path.rglob("escaped*"))
    assert "notes.json" not in left_out


def test_a_damaged_comparison_is_named_and_foreign_json_is_ignored(tmp_path):
    comparison = json.loads((RECORDS / "comparison.json").read_text())
    (tmp_path / "damaged.json").write_text('{"reference": "a", "orders": [], "rows": [{}, {}]}')
    (tmp_path / "edited.json").write_text(json.dumps(comparison | {"n": "2,500"}))
    (tmp_path / "foreign.json").write_text('{"predictions": []}')
    beside, (damaged, edited) = read_beside(sorted(tmp_path.glob("*.json")))
    assert beside == Beside()
    (tmp_path / "one.json").write_text(json.dumps(comparison | {"rows": comparison["rows"][:1]}))
    assert not read_beside([tmp_path / "one.json"])[0].comparisons, "the seeds of one recipe are no comparison"
    assert "damaged.json" in damaged
    assert "edited.json" in edited


def test_each_part_of_a_benchmark_has_its_baselines():
    run = run_record.read(CHAT)
    score = run.evals["ctibench"]
    part = dataclasses.replace(score, items=dataclasses.replace(score.items, name="a part of it"))
    notes = "\n".join(notes_of([dataclasses.replace(run, evals={"ctibench": score, "ctibench-test": part})]))
    assert score.items.name in notes
    assert "a part of it" in notes


def test_a_folder_without_runs_is_refused(ghost, tmp_path):
    assert str(tmp_path) in ghost.refused_here("ghost_jax.report", f"--runs={tmp_path}", f"--out={tmp_path / 'report'}")
    assert not (tmp_path / "report").exists()


def test_runs_in_deeper_folders_are_named(tmp_path):
    shutil.copytree(RECORDS / "chat_v5-seed0", tmp_path / "mine" / "chat")
    with pytest.raises(UserError, match=str(tmp_path / "mine")):
        find_runs(tmp_path)
    assert deeper_runs(tmp_path) == [tmp_path / "mine"]


def test_the_results_in_the_repository_are_those_of_its_records():
    assert results.results() == (ROOT / "RESULTS.md").read_text(), "run `make results`"


def test_a_report_ends_with_this_model_the_best_answer_without_reading_and_the_open_book():
    runs = [run_record.read(workdir) for workdir in find_runs(RECORDS)]
    beside, broken = read_beside(sorted(RECORDS.glob("*.json")))
    assert not broken
    rows = story(runs, beside)
    assert [float(accuracy.split()[0]) for _, accuracy in rows] == [pytest.approx(25, abs=1), 46.3, 83.8]
