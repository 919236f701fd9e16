"""Pictures and one page from run records: `python -m ghost_jax.report --runs=runs --out=report`.

Reads what runs wrote and nothing else: every number on the page is in a file of a run directory. The page holds its
pictures in itself, so that it can be sent as one file.
"""

import argparse
import base64
import html
import io
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from matplotlib.figure import Figure

import ghost_jax
from ghost_jax import metrics
from ghost_jax.errors import UserError, command
from ghost_jax.report_glance import glance_table
from ghost_jax.report_learned import learned
from ghost_jax.report_pictures import (
    accuracy_picture,
    letter_picture,
    log_prob_picture,
    loss_picture,
    mixture_picture,
    reliability_picture,
    study_picture,
)
from ghost_jax.report_table import machine_table, markdown, notes_of, result_table, said_of
from ghost_jax.whole import write_bytes, write_text

SIGNED = f"Written by ghost_jax {ghost_jax.__version__}, and every number of it read from the records of runs."
STYLE = """
body { font: 16px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 2rem auto; padding: 0 1rem; color: #1d2733; }
table { border-collapse: collapse; margin: 1rem 0; } td, th { padding: .3rem .8rem; border-bottom: 1px solid #d5dbe2; }
th { text-align: left; } img { max-width: 100%; height: auto; } .wide { overflow-x: auto; }
.note { background: #fff4d6; padding: .6rem .8rem; border-radius: .3rem; } code { background: #eef1f4; }
h1, h2, h3, p, li, code { overflow-wrap: anywhere; }
"""


def find_runs(folder: Path) -> list[Path]:
    """Returns the run directories at or below `folder`, by name. Raises UserError where there is none."""
    configs = [*folder.glob("config.json"), *folder.glob("*/config.json")]
    # A model that was exported into the same folder has a config.json too, of another kind.
    runs = sorted(path.parent for path in configs if "stage" in json.loads(path.read_text(encoding="utf-8")))
    if not runs:
        raise UserError(
            f"There is no run in {folder}. Train one: python -m ghost_jax.train --config=configs/chat_v5.py:nano."
        )
    return runs


def read_run(workdir: Path) -> dict:
    """Returns a run's records: config, environment, data, metrics lines, how it ended, scores by name.

    What is absent is empty: a run that is neither finished nor stopped by the watch is unfinished.
    """

    def read(name: str) -> dict:
        path = workdir / name
        return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}

    return {
        "name": workdir.name,
        "config": read("config.json"),
        "environment": read("environment.json"),
        "data": read("data.json"),
        "finished": (workdir / "status.json").is_file(),
        "stopped": read("stopped.json"),
        "metrics": metrics.read(workdir),
        "evals": {path.stem: read(f"evals/{path.name}") for path in sorted((workdir / "evals").glob("*.json"))},
    }


def write(workdirs: list[Path], out: Path, beside: Sequence[Path] = ()) -> Path:
    """Writes `RESULTS.md`, PNG pictures and `index.html` into `out`; returns the page's path.

    Args:
      beside: JSON records of no run: of the open book and an audit, which stand among the runs in the first table, of
        comparisons, and of sweeps, each with its picture beside it.
    """
    out.mkdir(parents=True, exist_ok=True)
    runs = [read_run(workdir) for workdir in workdirs]
    records = {path: json.loads(path.read_text(encoding="utf-8")) for path in beside}
    parts = parts_of(runs, list(records.values()))
    write_text(out / "RESULTS.md", results_of(parts))
    drawn = [_sweep(record, path, out) for path, record in records.items() if record.keys() >= {"axis", "settings"}]
    if study := study_picture(runs):
        drawn.append(_picture(study, out / "study.png", "the study's accuracies among policies that do not read"))
    drawn += [section(run, out) for run in runs]
    page = (
        '<!doctype html><html lang="en"><head><meta charset="utf-8"><title>ghost_jax report</title>'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<style>{STYLE}</style></head><body><h1>ghost_jax report</h1>{''.join(map(_html_part, parts))}"
        f"{''.join(drawn)}<p>{SIGNED}</p></body></html>"
    )
    write_text(out / "index.html", page)
    return out / "index.html"


class Part(NamedTuple):
    """A part of the report that is a page's as well as RESULTS.md's: rows of a table, the header first, and notes."""

    heading: str
    rows: Sequence[Sequence[str]]
    notes: Sequence[str]


def parts_of(runs: Sequence[dict], records: Sequence[dict]) -> list[Part]:
    """Returns the tables and sentences of a report, in their order."""
    parts = [
        Part("At a glance, CTIBench MCQ, %", glance_table(runs, records), []),
        Part("What we learned", [], learned(runs, records)),
        Part("Runs", result_table(runs), notes_of(runs)),
        Part("Machines", machine_table(runs), []),
    ]
    return [part for part in parts if part.rows or part.notes]


def results_of(parts: Sequence[Part]) -> str:
    """Returns the parts of a report as RESULTS.md."""
    return "# Results\n\n" + "".join(map(_markdown_part, parts)) + f"{SIGNED}\n"


def _markdown_part(part: Part) -> str:
    table = f"{markdown(part.rows)}\n\n" if part.rows else ""
    return f"## {part.heading}\n\n{table}" + "".join(f"{note}\n\n" for note in part.notes)


def _html_part(part: Part) -> str:
    notes = "".join(f"<p>{html.escape(note)}</p>" for note in part.notes)
    return f"<h2>{html.escape(part.heading)}</h2>{_html_table(part.rows)}{notes}"


def _html_table(rows: Sequence[Sequence[str]]) -> str:
    def line(cells: Sequence[str], tag: str) -> str:
        return "<tr>" + "".join(f"<{tag}>{html.escape(cell)}</{tag}>" for cell in cells) + "</tr>"

    lines = [line(cells, "td" if number else "th") for number, cells in enumerate(rows)]
    return f'<div class="wide"><table>{"".join(lines)}</table></div>' if rows else ""


def _sweep(record: dict, path: Path, out: Path) -> str:
    """Returns a sweep's part of the page, with the picture that the sweep drew of its axis."""
    over = f" over {record['axis']}" if record["axis"] else ""
    notes = "".join(f"<p>{html.escape(note)}</p>" for note in record["notes"])
    name = html.escape(record["name"])
    drawn = _image(path.with_suffix(".png").read_bytes(), out / f"sweep-{name}.png", f"accuracy and losses{over}")
    return f"<h2>Sweep {name}{html.escape(over)}</h2>{drawn}{notes}"


def section(run: dict, out: Path) -> str:
    """Returns one run's part of the page, and writes its pictures into `out`."""
    parts = [f"<h2>{html.escape(run['name'])}</h2>"]
    parts += [f'<p class="note">{html.escape(note)}</p>' for note in run["data"].get("notes", [])]
    parts += [f'<p class="note">{html.escape(s["note"])}</p>' for s in run["evals"].values() if s.get("note")]

    def said(key: str) -> str:
        return html.escape(str(run["environment"].get(key, "")))

    parts.append(
        f"<p>{said('machine')}; code {said('git_commit')[:10]}, ghost_jax {said('ghost_jax')}; command "
        f"<code>python -m ghost_jax.train --config={html.escape(run['config'].get('spec', ''))}</code></p>"
    )
    if run["metrics"]:
        parts.append(_picture(loss_picture(run), out / f"{run['name']}-loss.png", "losses of the run"))
    if run["data"].get("mixture"):
        parts.append(_picture(mixture_picture(run), out / f"{run['name']}-mixture.png", "share of each dataset"))
    for name, score in run["evals"].items():
        parts.append(f"<h3>{html.escape(score['items']['name'])}</h3><p>{html.escape(said_of(score))}</p>")
        drawn = {"accuracy": (accuracy_picture, "accuracy beside controls and policies")}
        drawn["letters"] = letter_picture, "share of each letter"
        if score.get("letter_log_probs"):
            drawn["log-probs"] = log_prob_picture, "log-probability of each letter"
        if score.get("calibration"):
            drawn["reliability"] = reliability_picture, "accuracy against confidence"
        for kind, (draw, alt) in drawn.items():
            parts.append(_picture(draw(score), out / f"{run['name']}-{name}-{kind}.png", alt))
    return "".join(parts)


def _picture(figure: Figure, path: Path, alt: str) -> str:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=150, metadata={"Software": f"ghost_jax {ghost_jax.__version__}"})
    return _image(buffer.getvalue(), path, alt)


def _image(png: bytes, path: Path, alt: str) -> str:
    """Writes a picture and returns it as a part of the page, which holds it whole."""
    write_bytes(path, png)
    return f'<p><img alt="{html.escape(alt)}" src="data:image/png;base64,{base64.b64encode(png).decode()}"></p>'


@command
def main() -> int:
    """Writes RESULTS.md, pictures and one page from the records of runs."""
    parser = argparse.ArgumentParser(prog="python -m ghost_jax.report", description=main.__doc__)
    parser.add_argument(
        "--runs", type=Path, default=Path("runs"), metavar="DIR", help="a run or a folder of runs (default: runs)"
    )
    parser.add_argument(
        "--out", type=Path, default=Path("report"), metavar="DIR", help="where to write (default: report)"
    )
    flags = parser.parse_args()
    beside = sorted([*flags.runs.glob("*.json"), *flags.runs.glob("sweeps/*/sweep.json")])
    print(write(find_runs(flags.runs), flags.out, beside))
    return 0


if __name__ == "__main__":
    sys.exit(main())
