"""Pictures and one page from run records: `python -m ghost_jax.report --runs=runs --out=report`.

Every number on the page is in a file of a run directory or of a report beside the runs. The page is one file that holds
its pictures.
"""

import base64
import sys
from collections.abc import Sequence
from pathlib import Path

import jinja2

from ghost_jax.core.atomic_io import write_bytes, write_text
from ghost_jax.core.errors import UserError, command, parser_of
from ghost_jax.core.object_store import path_of
from ghost_jax.reporting import plots, tables
from ghost_jax.reporting.records import deeper_runs, find_runs, read_beside, read_runs
from ghost_jax.reporting.summary import SIGNATURE, SIGNED, Part, parts_of, results_of, story
from ghost_jax.runs.run_record import RunRecord

TEMPLATE = Path(__file__).parent / "reporting" / "page.html"


def write(workdirs: Sequence[Path], out: Path, beside: Sequence[Path] = ()) -> list[tuple[str, str]]:
    """Writes `RESULTS.md`, PNG pictures and `index.html` into `out`; returns the `story` of the runs.

    Args:
      beside: JSON reports that are no run's: of the open book, audits, comparisons, and sweeps with their pictures.

    Raises UserError where no run can be read, or `out` holds a page that is not a report.
    """
    for path in (out / "index.html", out / "RESULTS.md"):
        if path.is_file() and SIGNATURE.encode() not in path.read_bytes():
            raise UserError(f"{path} is not a report of ghost_jax, and would be replaced. Choose another --out.")
    runs, broken = read_runs(workdirs)
    reports, broken_beside = read_beside(beside)
    out.mkdir(parents=True, exist_ok=True)
    parts = parts_of(runs, reports)
    if left_out := broken + broken_beside:
        parts.append(Part("Left out", [], left_out))
    write_text(out / "RESULTS.md", results_of(parts))
    study = plots.study_picture(runs)
    sweeps = []
    for sweep in reports.sweeps:
        picture, copy = sweep["picture"], out / f"sweep-{sweep['name']}.png"
        sweeps.append(sweep | {"png": _embedded(picture.read_bytes(), copy) if picture.is_file() else ""})
    text = TEMPLATE.read_text(encoding="utf-8")
    page = jinja2.Template(text, autoescape=True, trim_blocks=True, lstrip_blocks=True).render(
        parts=parts,
        sweeps=sweeps,
        study=study and _embedded(plots.png(study), out / "study.png"),
        runs=[_run(run, out) for run in runs],
        signed=SIGNED,
        tables=tables,
    )
    write_text(out / "index.html", page)
    return story(runs, reports)


def _embedded(png: bytes, path: Path) -> str:
    """Writes a picture and returns it in base64, as the page holds it."""
    write_bytes(path, png)
    return base64.b64encode(png).decode()


def _run(run: RunRecord, out: Path) -> dict:
    """Returns what the page shows of a run, and writes its pictures."""

    def embedded(pictures: dict, stem: str) -> dict[str, str]:
        return {kind: _embedded(plots.png(figure), out / f"{stem}-{kind}.png") for kind, figure in pictures.items()}

    # Scores with the book closed first: they show what the run knows.
    scores = sorted(run.evals.items(), key=lambda each: each[1].book)
    return {
        "record": run,
        "notes": [*run.data.notes, *(score.note for _, score in scores if score.note)],
        "pictures": embedded(plots.run_pictures(run), run.name),
        "scores": [(score, embedded(plots.score_pictures(score), f"{run.name}-{name}")) for name, score in scores],
    }


@command
def main(argv: Sequence[str]) -> int:
    """Writes RESULTS.md, pictures and one page from the records of runs."""
    parser = parser_of(main)
    add = parser.add_argument
    add("--runs", type=path_of, default="runs", metavar="DIR", help="a run or a folder of runs (default: runs)")
    add("--out", type=path_of, default="report", metavar="DIR", help="where to write (default: report)")
    flags = parser.parse_args(argv)
    beside = sorted([*flags.runs.glob("*.json"), *flags.runs.glob("sweeps/*/sweep.json")])
    rows = write(find_runs(flags.runs), flags.out, beside)
    for each in deeper_runs(flags.runs):
        print(f"NOTE: the runs in {each} are left out: python -m ghost_jax.report --runs={each} --out=DIR")
    for who, accuracy in rows:
        print(f"{who:{max(len(name) for name, _ in rows)}}  {accuracy}")
    print(flags.out / "index.html")
    return 0


if __name__ == "__main__":
    sys.exit(main())
