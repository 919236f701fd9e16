"""Pictures and one page from run records: `python -m ghost_jax.report --runs=runs --out=report`.

Reads what runs wrote and nothing else: every number on the page is in a file of a run directory. The page holds its
pictures in itself, so that it can be sent as one file.
"""

import argparse
import base64
import html
import io
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from matplotlib.figure import Figure

import ghost_jax
from ghost_jax.core.atomic_io import write_bytes, write_text
from ghost_jax.core.errors import UserError, command
from ghost_jax.core.paths import local_path
from ghost_jax.reporting.findings import learned
from ghost_jax.reporting.plots import (
    accuracy_picture,
    letter_picture,
    log_prob_picture,
    loss_picture,
    mixture_picture,
    reliability_picture,
    study_picture,
)
from ghost_jax.reporting.records import find_runs, read_beside, read_runs
from ghost_jax.reporting.summary import glance_table, story
from ghost_jax.reporting.tables import asked_of, command_of, machine_table, markdown, notes_of, result_table, said_of

SIGNATURE = "Written by ghost_jax"  # of every version: by it a report is known as one
SIGNED = f"{SIGNATURE} {ghost_jax.__version__}, and every number of it read from the records of runs."
STYLE = """
body { font: 16px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 2rem auto; padding: 0 1rem; color: #1d2733; }
table { border-collapse: collapse; margin: 1rem 0; } td, th { padding: .3rem .8rem; border-bottom: 1px solid #d5dbe2; }
th { text-align: left; } img { max-width: 100%; height: auto; } .wide { overflow-x: auto; }
.note { background: #fff4d6; padding: .6rem .8rem; border-radius: .3rem; } code { background: #eef1f4; }
h1, h2, h3, p, li, code { overflow-wrap: anywhere; }
"""


def write(workdirs: list[Path], out: Path, beside: Sequence[Path] = ()) -> Path:
    """Writes `RESULTS.md`, PNG pictures and `index.html` into `out`; returns the page's path.

    Args:
      beside: JSON records of no run: of the open book and an audit, which stand among the runs in the first table, of
        comparisons, and of sweeps, each with its picture beside it.

    Raises UserError where no run can be read, or `out` holds a page that is no report.
    """
    _check_out(out)
    runs, broken = read_runs(workdirs)
    records, broken_beside = read_beside(beside)
    out.mkdir(parents=True, exist_ok=True)
    parts = parts_of(runs, list(records.values()))
    if left_out := broken + broken_beside:
        parts.append(Part("Left out", [], left_out))
    write_text(out / "RESULTS.md", results_of(parts))
    drawn = [_sweep(record, path, out) for path, record in records.items() if record.keys() >= {"axis", "settings"}]
    if study := study_picture(runs):
        drawn.append(_picture(study, out / "study.png", "the study's accuracies among baselines that do not read"))
    drawn += [section(run, out) for run in runs]
    page = (
        '<!doctype html><html lang="en"><head><meta charset="utf-8"><title>ghost_jax report</title>'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<style>{STYLE}</style></head><body><h1>ghost_jax report</h1>{''.join(map(_html_part, parts))}"
        f"{''.join(drawn)}<p>{SIGNED}</p></body></html>"
    )
    write_text(out / "index.html", page)
    return out / "index.html"


def _check_out(out: Path) -> None:
    """Raises UserError where a file would be replaced that no report wrote."""
    for path in (out / "index.html", out / "RESULTS.md"):
        if path.is_file() and SIGNATURE not in path.read_text(encoding="utf-8", errors="replace"):
            raise UserError(f"{path} is no report of ours, and would be replaced. Choose another --out.")


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

    made = f"{said('machine')}; code {said('git_commit')[:10]}, ghost_jax {said('ghost_jax')}"
    if command := command_of(run):
        made += f"; command <code>{html.escape(command)}</code>"
    parts.append(f"<p>{made}</p>")
    if run["metrics"]:
        parts.append(_picture(loss_picture(run), out / f"{run['name']}-loss.png", "losses of the run"))
    if run["data"].get("mixture"):
        parts.append(_picture(mixture_picture(run), out / f"{run['name']}-mixture.png", "share of each dataset"))
    # What a run knows comes first; what it reads off pages is another thing.
    for name, score in sorted(run["evals"].items(), key=lambda each: each[1]["book"]):
        asked = f"{score['items']['name']}, {asked_of(score)}"
        parts.append(f"<h3>{html.escape(asked)}</h3><p>{html.escape(said_of(score))}</p>")
        drawn = {"accuracy": (accuracy_picture, "accuracy beside controls and baselines")}
        drawn["letters"] = letter_picture, "share of each letter"
        if score.get("letter_log_probs"):
            drawn["log-probs"] = log_prob_picture, "log-probability of each letter"
        if score.get("calibration"):
            drawn["reliability"] = reliability_picture, "accuracy against confidence"
        for kind, (draw, alt) in drawn.items():
            parts.append(_picture(draw(score), out / f"{run['name']}-{name}-{kind}.png", f"{alt}: {asked}"))
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
def main(argv: Sequence[str]) -> int:
    """Writes RESULTS.md, pictures and one page from the records of runs."""
    parser = argparse.ArgumentParser(prog="python -m ghost_jax.report", description=main.__doc__)
    parser.add_argument(
        "--runs", type=local_path, default=Path("runs"), metavar="DIR", help="a run or a folder of runs (default: runs)"
    )
    parser.add_argument(
        "--out", type=local_path, default=Path("report"), metavar="DIR", help="where to write (default: report)"
    )
    flags = parser.parse_args(argv)
    beside = sorted([*flags.runs.glob("*.json"), *flags.runs.glob("sweeps/*/sweep.json")])
    workdirs = find_runs(flags.runs)
    page = write(workdirs, flags.out, beside)
    rows = story(read_runs(workdirs)[0], list(read_beside(beside)[0].values()))
    for who, accuracy in rows:
        print(f"{who:{max(len(name) for name, _ in rows)}}  {accuracy}")
    print(page)
    return 0


if __name__ == "__main__":
    sys.exit(main())
