"""`python -m ghost_jax.report`: every number comes from a run's records, and the page stands on its own."""

import html
import json
import re
import shutil
import statistics

import matplotlib.image
import pytest

import ghost_jax
from configs import chat_v4_failed
from ghost_jax.data.builders import DATASETS
from ghost_jax.reporting.plots import mixture_picture, study_picture
from ghost_jax.reporting.records import read_run
from ghost_jax.reporting.tables import WORDS, recipe_of, result_table
from ghost_jax.sweeps import results as sweep_table
from ghost_jax.sweeps.grid import Sweep, grid
from launch import results
from tests.conftest import ROOT, score_of, updates_of

NOTE = "<script>alert('x')</script> & more"
WHY = "three losses rose: 3.175, 3.285,\n3.403 | the watch"


@pytest.fixture(scope="module")
def report(ghost, tiny_run, tmp_path_factory):
    """The report of a finished chat run, its base, a run that was cut short, with an odd note, and one stopped."""
    runs, out = tmp_path_factory.mktemp("runs"), tmp_path_factory.mktemp("report")
    shutil.copytree(tiny_run.base, runs / "base")
    shutil.copytree(tiny_run.workdir, runs / "chat")
    cut = shutil.copytree(tiny_run.workdir, runs / "cut", ignore=shutil.ignore_patterns("status.json", "evals"))
    (cut / "metrics.jsonl").write_text("".join(updates_of(tiny_run.workdir)[:3]) + '{"step": 4, "lo')
    data = json.loads((cut / "data.json").read_text())
    (cut / "data.json").write_text(json.dumps(data | {"notes": [NOTE]}))
    stopped = shutil.copytree(cut, runs / "stopped")
    (stopped / "stopped.json").write_text(json.dumps({"step": 3, "reason": WHY}))
    result = ghost("ghost_jax.report", f"--runs={runs}", f"--out={out}")
    assert result.stdout.strip() == str(out / "index.html")
    return out


def tables_of(report) -> list[dict[str, dict[str, str]]]:
    """Returns the tables of RESULTS.md, a dict a run in each."""
    tables = []
    for block in (report / "RESULTS.md").read_text().split("\n\n"):
        if block.startswith("|"):
            lines = block.strip().splitlines()
            header, _, *rows = [[cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]] for line in lines]
            tables.append({row[0]: dict(zip(header, row, strict=True)) for row in rows})
    return tables


def rows_of(report) -> dict[str, dict[str, str]]:
    return tables_of(report)[0]


def test_the_numbers_are_those_of_the_records(report, tiny_run):
    rows, score = rows_of(report), score_of(tiny_run.workdir)
    lines = [json.loads(line) for line in updates_of(tiny_run.workdir)]
    last = lines[-1]
    assert list(rows) == ["base", "chat", "cut", "stopped"]
    low, high = (f"{100 * bound:.1f}" for bound in score["headline"]["ci95"])
    letter = max(score["letter_share"], key=score["letter_share"].get)
    assert rows["chat"] == {
        "run": "chat",
        "recipe": "Q&A x1 + raw MCQ x5 + CoT MCQ x2 + small talk x8 on pretrain_v05",
        "study: run": "chat-v5",
        "study: steps": "2,000",
        "study: LR": "5e-5",
        "study: val": "2.990",
        "study: CTIBench": "34.8%",
        "steps": "8",
        "LR": "1e-3",
        "val": f"{last['val_loss']:.3f}",
        "val shared": f"{last['val_loss_shared']:.3f}",
        "state": "finished",
        "items": f"held-out questions of this project, not CTIBench (n={score['n']}, closed book)",
        "accuracy over orders (95%)": f"{100 * score['headline']['accuracy']:.1f} ({low} to {high})",
        "published order": f"{100 * score['single_order']:.1f}",
        "most frequent letter": f"{letter} {100 * score['letter_share'][letter]:.1f}%",
        "verdict": score["verdict"].replace("collapsed", "COLLAPSED"),
    }
    assert rows["base"]["recipe"] == "corpus x1"
    assert {rows["base"][column] for column in rows["base"] if column.startswith("study")} == {"—"}
    assert rows["base"]["verdict"] == "—"


def test_sizes_and_speeds_stand_in_a_table_of_their_own(report, tiny_run):
    lines = [json.loads(line) for line in updates_of(tiny_run.workdir)]
    assert tables_of(report)[1]["chat"] == {
        "run": "chat",
        "parameters": "43,232",
        "machine": json.loads((tiny_run.workdir / "environment.json").read_text())["machine"],
        "tokens/s": f"{statistics.median(line['tokens_per_s'] for line in lines):,.0f}",
    }


def test_an_unfinished_run_is_labelled(report):
    row = rows_of(report)["cut"]
    assert (row["steps"], row["state"], row["val"], row["verdict"]) == ("3 of 8", "unfinished", "—", "—")
    assert "<td>unfinished</td>" in (report / "index.html").read_text()


def test_a_run_that_the_watch_stopped_tells_when_and_why(report):
    told = "stopped at 3: three losses rose: 3.175, 3.285, 3.403 "
    assert rows_of(report)["stopped"]["state"] == told + r"\| the watch"
    assert "stopped at 3: three losses rose" in (report / "index.html").read_text()


def test_what_answers_without_reading_stands_below_the_scores(report, tiny_run):
    score = score_of(tiny_run.workdir)
    text = (report / "RESULTS.md").read_text()
    assert f"always A {100 * score['baselines']['always_A']:.1f}, " in text
    assert "The study's figures are of one run each" in text


def test_the_pictures_are_pictures(report):
    pictures = {path.name: matplotlib.image.imread(path) for path in report.glob("*.png")}
    assert pictures.keys() == {
        "base-loss.png",
        "base-mixture.png",
        "chat-loss.png",
        "chat-mixture.png",
        "chat-ctibench-accuracy.png",
        "chat-ctibench-letters.png",
        "chat-ctibench-log-probs.png",
        "chat-ctibench-reliability.png",
        "cut-loss.png",
        "cut-mixture.png",
        "stopped-loss.png",
        "stopped-mixture.png",
    }
    for name, pixels in pictures.items():
        assert min(pixels.shape[:2]) > 200, name
        assert pixels.std() > 0, name


def test_the_mixture_is_drawn_as_the_run_recorded_it(tiny_run):
    recorded = read_run(tiny_run.workdir)["data"]["mixture"]
    (axes,) = mixture_picture(read_run(tiny_run.workdir)).axes
    names = [label.get_text() for label in axes.get_yticklabels()]
    assert sorted(names) == sorted(["Q&A x1", "raw MCQ x5", "CoT MCQ x2", "small talk x8"])
    of_records, of_tokens = ([bar.get_width() for bar in bars][::-1] for bars in axes.containers)
    assert of_records == pytest.approx([100 * share["record_share"] for share in recorded])
    assert of_tokens == pytest.approx([100 * share["supervised_share"] for share in recorded])


def test_every_artefact_names_the_version_that_wrote_it(report):
    signed = f"Written by ghost_jax {ghost_jax.__version__}, "
    assert (report / "RESULTS.md").read_text().splitlines()[-1].startswith(signed)
    assert signed in (report / "index.html").read_text()
    assert f"Software\0ghost_jax {ghost_jax.__version__}".encode() in (report / "chat-loss.png").read_bytes()


def test_what_cannot_be_told_without_a_comparison_is_said(report):
    text = (report / "RESULTS.md").read_text()
    assert "## What we learned\n\nNothing can be told: it takes two scored runs" in text


def test_a_sweep_among_the_runs_is_shown_with_its_picture(ghost, tiny_run, tmp_path):
    """The tables and the picture are the sweep's own; here of two rates that were not run with three seeds."""
    runs, out = tmp_path / "runs", tmp_path / "report"
    rates = (1e-3, 2e-3)
    sweep = Sweep(
        grid("configs/chat_v5.py:nano", {"optim.peak_lr": rates}), seeds=(0,), axis="optim.peak_lr", name="lr"
    )
    for run in sweep.runs():
        shutil.copytree(tiny_run.workdir, runs / "sweeps" / "lr" / run.name)
    sweep_table.write(sweep, runs / "sweeps" / "lr", {run.name: "finished" for run in sweep.runs()})
    shutil.copytree(tiny_run.workdir, runs / "chat", ignore=shutil.ignore_patterns("checkpoints"))
    ghost("ghost_jax.report", f"--runs={runs}", f"--out={out}")
    assert (out / "sweep-lr.png").read_bytes() == (runs / "sweeps" / "lr" / "sweep.png").read_bytes()
    page = (out / "index.html").read_text()
    assert "<h2>Sweep lr over optim.peak_lr</h2>" in page
    assert "Never a claim from one seed" in page


def test_the_study_is_drawn_among_the_baselines_where_a_rebuilt_run_was_scored_on_its_benchmark(tiny_run):
    run = read_run(tiny_run.workdir)
    assert study_picture([run]) is None, "held-out questions are not the study's benchmark"
    score = {**run["evals"]["ctibench"], "note": ""}
    (axes,) = study_picture([{**run, "evals": {"ctibench": score}}, run]).axes  # rebuilt twice, scored once
    rows = [label.get_text() for label in reversed(axes.get_yticklabels())]
    assert rows[:5] == ["always A", "always B", "always C", "always D", "longest"]
    collapsed = " COLLAPSED" if score["verdict"] == "collapsed" else ""
    assert rows[-2:] == ["study: chat-v5", f"ours: chat{collapsed}"]
    hollow = {
        rows[::-1][int(y)]: x
        for line in axes.lines
        if line.get_markerfacecolor() == "white"
        for x, y in line.get_xydata()
    }
    assert hollow["study: chat-v5"] == pytest.approx(34.8)
    assert hollow["always C"] == pytest.approx(100 * score["baselines"]["always_C"])
    one_order = {**score, "headline": {**score["headline"], "orders": ["ABCD"], "orders_per_item": 1}}
    assert study_picture([{**run, "evals": {"ctibench": one_order}}]) is None


def test_what_a_score_is_worth_is_said_in_words(report, tiny_run):
    page = (report / "index.html").read_text()
    assert html.escape(score_of(tiny_run.workdir)["verdict_text"]) in page


def test_the_page_stands_on_its_own_and_takes_notes_as_text(report):
    page = (report / "index.html").read_text()
    references = re.findall(r"""(?:src|href|url)\s*[=(]\s*["']?([^"'\s>)]+)""", page)
    assert references
    assert all(reference.startswith("data:image/png;base64,") for reference in references)
    assert len(references) == len(list(report.glob("*.png")))
    assert "THIS IS NOT CTIBENCH" in page
    assert "<script" not in page
    assert "&lt;script&gt;alert" in page


def test_what_is_broken_is_named_and_left_out_and_what_is_no_score_is_no_score(ghost, tiny_run, tmp_path):
    runs = tmp_path / "runs"
    for name in ("sound", "cut", "foreign"):
        shutil.copytree(tiny_run.workdir, runs / name, ignore=shutil.ignore_patterns("checkpoints"))
    (runs / "sound" / "evals" / "other.json").write_text("{}")
    (runs / "cut" / "evals" / "ctibench.json").write_text('{"book": "clo')
    (runs / "foreign" / "config.json").write_text("{}")
    (runs / "notes.json").write_text("[1, 2]")
    (runs / "torn.json").write_text("[1, 2")
    ghost("ghost_jax.report", f"--runs={runs}", f"--out={tmp_path / 'report'}")
    assert list(rows_of(tmp_path / "report")) == ["sound"]
    said = (tmp_path / "report" / "RESULTS.md").read_text().partition("## Left out")[2]
    for path in ("cut/evals/ctibench.json", "foreign/config.json", "torn.json"):
        assert str(runs / path) in said
    assert "notes.json" not in said


def test_a_page_of_somebody_else_is_not_replaced(ghost, tiny_run, tmp_path):
    (tmp_path / "index.html").write_text("my homepage")
    said = ghost.refused("ghost_jax.report", f"--runs={tiny_run.workdir}", f"--out={tmp_path}")
    assert "index.html is no report of ours" in said
    assert [path.name for path in tmp_path.iterdir()] == ["index.html"]


def test_a_page_of_another_version_of_ours_is_replaced(ghost, tiny_run, tmp_path):
    ghost("ghost_jax.report", f"--runs={tiny_run.workdir}", f"--out={tmp_path}")
    page = tmp_path / "index.html"
    of_today = page.read_text()
    page.write_text(of_today.replace(f"ghost_jax {ghost_jax.__version__},", "ghost_jax 12.0.1,"))
    assert page.read_text() != of_today
    ghost("ghost_jax.report", f"--runs={tiny_run.workdir}", f"--out={tmp_path}")
    assert page.read_text() == of_today


def test_a_folder_without_runs_is_refused(ghost, tmp_path):
    said = ghost.refused("ghost_jax.report", f"--runs={tmp_path}", f"--out={tmp_path / 'report'}")
    assert said.startswith(f"There is no run in {tmp_path}.")
    assert not (tmp_path / "report").exists()


# ---- Records of all kinds ----


def config(**changes) -> dict:
    """Returns a recorded config as the oldest ones are, with changes."""
    of_model = {"layers": 1, "width": 8, "heads": 1, "mlp_dim": 8, "vocab_size": 16}
    return {"steps": 10, "model": of_model, "optim": {"peak_lr": 2e-4}, "data": {}} | changes


def run(**changes) -> dict:
    """Returns the records of a run as `read_run` does."""
    kept = {"name": "mine", "config": config(), "environment": {}, "data": {}, "metrics": [], "evals": {}}
    return kept | {"finished": False, "stopped": {}} | changes


@pytest.mark.parametrize(
    ("changes", "recipe"),
    [
        ({}, "corpus"),
        ({"data": {"mixture": {"facts": 1.0, "pretrain": 1.0}}}, "corpus x1 + rewritten facts x1"),
        (
            {"data": {"mixture": {"fact_mcq": 0.5, "mcq": 0.0, "raft": 5.0}, "layout": "letter_after"}},
            "fact MCQ x0.5 + RAFT MCQ x5, asked as letter_after",
        ),
        (
            {"data": {"mixture": {"mcq": 2.0}}, "base": {"name": "pretrain_v04"}, "loss_norm": "record_mean"},
            "raw MCQ x2 on pretrain_v04, mean over records",
        ),
        ({"data": {"mixture": {"riddles": 1.0}}}, "riddles x1"),
    ],
)
def test_a_recipe_is_told_in_the_words_of_the_study(changes, recipe):
    assert recipe_of(config(**changes)) == recipe


def test_the_columns_of_the_study_are_left_out_where_no_run_has_its_figures():
    header, row = result_table([run()])
    assert not any(column.startswith("study") for column in header)
    assert row[:4] == ("mine", "corpus", "0 of 10", "2e-4")


def test_a_run_that_the_study_killed_has_its_words_for_a_score():
    failed = chat_v4_failed.get_config("nano").to_dict()
    header, row, ours = result_table([run(config=failed), run()])
    assert dict(zip(header, row, strict=True)) | {
        "study: run": "chat-v4 (failed)",
        "study: steps": "300",
        "study: LR": "2e-4",
        "study: val": "—",
        "study: CTIBench": "diverged, killed",
        "LR": "4e-3",
    } == dict(zip(header, row, strict=True))
    assert len(ours) == len(header)


def test_every_dataset_has_its_words():
    assert WORDS.keys() == DATASETS.keys()


def test_the_results_in_the_repository_are_those_of_its_records():
    assert results.results() == (ROOT / "RESULTS.md").read_text(), "run `make results`"
