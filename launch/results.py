"""Writes what the campaign found into RESULTS.md: `make results`, or `python -m launch.results`.

The text is hand-written, in evals/records/campaign/results.md. A figure of it is no number but a look-up in the records
of runs, and a record that is absent is an error:

    {{FOLDER SETTING EVALUATION KEY}}   e.g. {{facts-nano knowledge facts cloze.pmi}}: of the setting's seeds the mean,
                                        in percent, from the lowest to the highest end of their intervals
    {{items FOLDER SETTING EVALUATION}} how many questions every seed was asked
    {{readings FOLDER}}                 a table: letters, cloze and ranking of every setting
    {{exposure FOLDER}}                 a table: recall by how often a fact was stated
    {{hours FOLDER}}                    core-hours that the training of its recorded runs and bases took
"""

import re
import sys
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

from evals.analysis.stats import clustered_interval
from ghost_jax import report
from ghost_jax.core.atomic_io import read_json, read_text, write_text
from ghost_jax.core.errors import UserError, command
from ghost_jax.reporting.plots import ACCENT, INK, MUTED, WARM
from ghost_jax.reporting.records import find_runs, read_run
from ghost_jax.reporting.tables import markdown

ROOT = Path(__file__).resolve().parents[1]
RECORDS = ROOT / "evals" / "records"
TEXT = "campaign/results.md"
SEED = re.compile(r"(?P<setting>.+)-seed(?P<seed>\d+)")
READINGS = {"letters": "headline", "cloze": "cloze.pmi", "ranking": "cloze.ranked"}
CORES = 2  # of the machines that the campaign runs on


class Folder:
    """The records of one folder of the campaign: runs by setting, each a dict of its evaluations by name."""

    def __init__(self, path: Path):
        self.name, self.settings = path.name, defaultdict(list)
        for run in sorted(path.iterdir()):
            if (named := SEED.fullmatch(run.name)) and (run / "evals").is_dir():
                evaluations = {each.stem: read_json(each) for each in (run / "evals").glob("*.json")}
                self.settings[named["setting"]].append(evaluations)
        self.path = path

    def found(self, setting: str, evaluation: str, key: str) -> list[tuple[float, float, float]]:
        """Returns of each seed the accuracy and its interval. Raises UserError where there is no such record."""
        values = []
        for evaluations in self.settings.get(setting, []):
            value = evaluations.get(evaluation, {})
            for part in key.split("."):
                value = value.get(part, {})
            if "accuracy" in value:
                values.append((value["accuracy"], *value["ci95"]))
        if not values:
            raise UserError(
                f"{TEXT} asks for {self.name} {setting} {evaluation} {key}, and no run of {self.path} has it."
            )
        return values

    def hours(self) -> float:
        """Returns the core-hours of training: tokens over tokens a second, of every run and base."""
        seconds = 0.0
        for workdir in find_runs(self.path):
            config, lines = (run := read_run(workdir))["config"], run["metrics"]
            tokens = config["steps"] * config["batch_size"] * config["data"]["seq_len"]
            seconds += tokens / float(np.median([line["tokens_per_s"] for line in lines]))
        return CORES * seconds / 3600


def shown(values: Sequence[tuple[float, float, float]]) -> str:
    """Returns accuracies of seeds in percent: the mean, and from the lowest to the highest end of their intervals."""
    mean, low, high = np.mean([each[0] for each in values]), min(v[1] for v in values), max(v[2] for v in values)
    seeds = f", {len(values)} seeds" if len(values) > 1 else ""
    return f"{100 * mean:.1f} ({100 * low:.1f} to {100 * high:.1f}{seeds})"


def readings(folder: Folder) -> list[tuple[str, ...]]:
    """Returns a row a setting, the header first: held-out facts and CTIBench by letters, cloze and ranking."""
    rows = [("setting", *(f"facts, {name}" for name in READINGS), "top letter", "CTIBench, letters", "CTIBench, cloze")]
    for setting, runs in folder.settings.items():
        share = np.mean([max(run["facts"]["letter_share"].values()) for run in runs])
        cells = [shown(folder.found(setting, "facts", key)) for key in READINGS.values()]
        bench = [shown(folder.found(setting, "ctibench", READINGS[name])) for name in ("letters", "cloze")]
        rows.append((setting, *cells, f"{100 * share:.0f}%", *bench))
    return rows


def recall_by_exposure(folder: Folder) -> dict[str, dict[int, tuple[int, float, float, float]]]:
    """Returns of each way to ask: exposures -> facts, recall and its interval, over all rotations."""
    found = {way: defaultdict(list) for way in ("statement", "question")}
    for run in (run["recall"] for runs in folder.settings.values() for run in runs):
        for way, by_count in found.items():
            for name, count, credit in zip(run["ids"], run["exposures"], run["credits"][way], strict=True):
                by_count[count].append((credit, name.rpartition("/")[0]))
    return {
        way: {
            count: (len(each), *clustered_interval(np.array([c for c, _ in each]), [name for _, name in each]))
            for count, each in sorted(by_count.items())
        }
        for way, by_count in found.items()
    }


def exposure(folder: Folder) -> list[tuple[str, ...]]:
    """Returns a row a number of exposures, the header first."""
    found = recall_by_exposure(folder)
    rows = [("stated", "facts", "recall, statement in a new wording", "recall, question")]
    for count in found["statement"]:
        cells = [
            f"{100 * m:.1f} ({100 * low:.1f} to {100 * high:.1f})"
            for _, m, low, high in (w[count] for w in found.values())
        ]
        rows.append((f"{count:,} times", f"{found['statement'][count][0]:,}", *cells))
    return rows


def exposure_picture(folders: Sequence[Folder]) -> Figure:
    """Draws recall by question against exposures, a line a folder."""
    figure = Figure(figsize=(6, 3.6), layout="constrained")
    axes = figure.subplots()
    for folder, color in zip(folders, (ACCENT, WARM), strict=False):
        found = recall_by_exposure(folder)
        for way, style in (("statement", "o-"), ("question", "o--")):
            counts = list(found[way])
            low, mean, high = (np.array([100 * found[way][c][i] for c in counts]) for i in (2, 1, 3))
            label = f"{folder.name.removeprefix('exposure-')}, {way}"
            axes.errorbar(counts, mean, yerr=[mean - low, high - mean], fmt=style, color=color, capsize=3, label=label)
    axes.axhline(25, color=MUTED, linestyle=":", label="chance")
    axes.set(xscale="log", xlabel="how often a fact was stated", ylabel="recall, %", ylim=(0, 100))
    axes.legend(frameon=False, fontsize=8)
    return _finished(figure)


def readings_picture(folder: Folder) -> Figure:
    """Draws, a row a setting, what is known of held-out facts by letters, cloze and ranking, with intervals."""
    names = list(folder.settings)
    figure = Figure(figsize=(6, 1.2 + 0.45 * len(names)), layout="constrained")
    axes = figure.subplots()
    for shift, (name, color) in zip((0.2, 0.0, -0.2), zip(READINGS, (WARM, ACCENT, INK), strict=True), strict=True):
        for place, setting in enumerate(reversed(names)):
            values = folder.found(setting, "facts", READINGS[name])
            mean = 100 * np.mean([each[0] for each in values])
            ends = [100 * min(v[1] for v in values), 100 * max(v[2] for v in values)]
            axes.plot(ends, [place + shift] * 2, color=color, linewidth=2)
            axes.plot(mean, place + shift, "o", color=color, label=name if not place else None)
    axes.axvline(25, color=MUTED, linestyle=":")
    axes.set_yticks(range(len(names)), list(reversed(names)))
    axes.set(xlabel="accuracy on held-out facts, %", xlim=(0, 100))
    axes.legend(frameon=False, fontsize=8, loc="lower right")
    return _finished(figure)


def _finished(figure: Figure) -> Figure:
    figure.axes[0].spines[["top", "right"]].set_visible(False)
    return figure


TABLES = {"readings": readings, "exposure": exposure}


def filled(text: str, records: Path) -> str:
    """Returns the text with its look-ups replaced. Raises UserError for one that no record answers."""

    def look_up(match: re.Match) -> str:
        words = match[1].split()
        kind = words[0] if words[0] in (*TABLES, "hours", "items") else ""
        name = words[1 if kind else 0]
        if not (records / "campaign" / name).is_dir():
            raise UserError(f"{TEXT} asks for {match[0]}, and there are no records of {name}. Run make campaign.")
        folder = Folder(records / "campaign" / name)
        if kind == "hours":
            return f"{folder.hours():.1f}"
        if kind == "items":
            counts = {run.get(words[3], {}).get("n") for run in folder.settings.get(words[2], [])}
            if len(counts) != 1 or None in counts:
                raise UserError(
                    f"{TEXT} has {match[0]}, and the runs of {folder.path} do not have one number of items."
                )
            return f"{counts.pop():,}"
        if kind:
            return markdown(TABLES[kind](folder))
        if len(words) < 4:
            raise UserError(f"{TEXT} has {match[0]}, which is no look-up. Write {{{{FOLDER SETTING EVALUATION KEY}}}}.")
        return shown(folder.found(words[1], words[2], " ".join(words[3:])))  # the name of a control has blanks

    return re.sub(r"\{\{(.+?)\}\}", look_up, text)


def results(records: Path = RECORDS) -> str:
    """Returns RESULTS.md: the campaign's text with its figures, and the tables of the single runs beside it."""
    runs = [read_run(workdir) for workdir in find_runs(records)]
    beside = [read_json(path) for path in sorted(records.glob("*.json"))]
    tables = report.results_of(report.parts_of(runs, beside)).partition("\n\n")[2]
    return filled(read_text(records / TEXT), records) + "\n" + tables


@command
def main(argv: Sequence[str]) -> int:
    """Writes RESULTS.md and its pictures from the records in the repository."""
    text = results()
    pictures = RECORDS / "campaign"
    drawn = {"readings.png": (readings_picture, "facts-nano"), "exposure.png": (exposure_picture, "exposure-nano")}
    for name, (draw, folder) in drawn.items():
        if f"campaign/{name}" in text:
            found = Folder(pictures / folder)
            draw([found] if draw is exposure_picture else found).savefig(
                pictures / name, dpi=150, metadata={"Software": None}
            )
    write_text(ROOT / "RESULTS.md", text)
    print(ROOT / "RESULTS.md")
    return 0


if __name__ == "__main__":
    sys.exit(main())
