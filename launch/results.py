"""Writes RESULTS.md from the records of the campaign: `make results`, or `python -m launch.results`.

The text is hand-written, in evals/records/campaign/results.md. Its figures are look-ups in the records of runs, and a
record that is absent is an error:

    {{FOLDER SETTING EVALUATION KEY}}   e.g. {{facts-nano knowledge facts cloze.pmi}}: the mean over the setting's seeds
                                        in percent, and from the lowest to the highest end of their intervals; with
                                        `.gain` behind a control the paired gain over it
    {{items FOLDER SETTING EVALUATION}} how many questions every seed was asked
    {{baseline FOLDER SETTING EVALUATION NAME}} the accuracy of a baseline over the orders, in percent
    {{readings FOLDER}}                 a table: letters, cloze and ranking of every setting
    {{exposure FOLDER}}                 a table: recall by how often a fact was stated
    {{paired FOLDER OTHER SETTING WAY}} by how many points recall is higher than in the other folder, by fact
    {{hours FOLDER [SETTING]}}          core-hours that the training of its runs, or of a setting's, and bases took
"""

import functools
import re
import sys
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure
from ml_collections import ConfigDict

from evals.analysis.stats import clustered_interval, paired_difference
from ghost_jax.core.atomic_io import read_json, read_text, write_text
from ghost_jax.core.errors import UserError, command, parser_of
from ghost_jax.reporting.plots import ACCENT, INK, MUTED, WARM, new_figure
from ghost_jax.reporting.records import find_runs, read_beside
from ghost_jax.reporting.summary import parts_of, results_of
from ghost_jax.reporting.tables import Row, markdown
from ghost_jax.runs import run_dir, run_record
from ghost_jax.runs.evaluation import percent
from ghost_jax.runs.metrics import seconds_of

ROOT = Path(__file__).resolve().parents[1]
RECORDS = ROOT / "evals" / "records"
TEXT = "campaign/results.md"
SEED = re.compile(r"(?P<setting>.+)-seed(?P<seed>\d+)")
READINGS = {"letters": "headline", "cloze": "cloze.pmi", "ranking": "cloze.ranked"}
GAIN = ".gain"
CORES = 2  # of the machines that the campaign runs on
Interval = tuple[float, float, float]  # a figure and the ends of its 95% interval


class Folder:
    """The records of one folder of the campaign; `settings` has the evaluations of each seed, by name."""

    def __init__(self, path: Path):
        if not path.is_dir():
            raise UserError(f"{TEXT} asks for {path.name}, and there are no records of it. Run make campaign.")
        self.path, self.settings = path, defaultdict(list)
        for run in sorted(path.iterdir()):
            if named := SEED.fullmatch(run.name):
                evaluations = {each.stem: read_json(each) for each in (run / "evals").glob("*.json")}
                self.settings[named["setting"]].append(evaluations)

    def records(self, setting: str, evaluation: str) -> list[dict]:
        """Returns the evaluation of each seed. Raises UserError where one lacks it, or was asked other questions."""
        found = [run.get(evaluation, {}) for run in self.settings.get(setting, [])]
        asked = {str([each.get(key) for key in ("items", "n", "sha256")]) for each in found}
        if {} in found or len(asked) != 1:
            self.refuse(f"{setting} {evaluation}")
        return found

    def found(self, setting: str, evaluation: str, key: str) -> list[Interval]:
        """Returns the accuracy of each seed. Raises UserError where a record lacks it."""
        values, (figure, ends) = [], ("gain", "gain_ci95") if key.endswith(GAIN) else ("accuracy", "ci95")
        for value in self.records(setting, evaluation):
            for part in key.removesuffix(GAIN).split("."):
                value = value.get(part) if isinstance(value, dict) else None
            if not isinstance(value, dict) or figure not in value:
                self.refuse(f"{setting} {evaluation} {key}")
            values.append((value[figure], *value[ends]))
        return values

    def baseline(self, setting: str, evaluation: str, name: str) -> str:
        """Returns the accuracy of a baseline, which every seed must have alike."""
        found = {each["baselines_over_orders"].get(name) for each in self.records(setting, evaluation)}
        if None in found or len(found) > 1:
            self.refuse(f"{setting} {evaluation} {name}")
        return f"{100 * found.pop():.1f}"

    def hours(self, setting: str = "") -> float:
        """Returns the core-hours of training of every run and base: between two lines, tokens over tokens a second.

        With a setting, the runs of others and the bases that only they stand on are left out: sweeps share folders.
        """
        seconds, runs = 0.0, list(map(run_record.read, find_runs(self.path)))
        others = [run for run in runs if (named := SEED.fullmatch(run.name)) and named["setting"] != setting]
        if setting:
            runs = [run for run in runs if run not in others]
            runs = [run for run in runs if run.name not in _bases(others) - _bases(runs)]
        for run in runs:
            tokens = run.config["batch_size"] * run.config["data"]["seq_len"]
            seconds += max(seconds_of(run.metrics, tokens), default=0.0)  # of one that logged nothing
        return CORES * seconds / 3600

    def refuse(self, asked: str):
        """Raises UserError for a look-up that no record answers."""
        raise UserError(f"{TEXT} asks for {self.path.name} {asked}, and not every run of {self.path} has the same.")


def _bases(runs: Sequence[run_record.RunRecord]) -> set[str]:
    """Returns the names of the bases of chat runs."""
    return {run_dir.name_of(ConfigDict(run.config["base"])) for run in runs if "base" in run.config}


def pooled(values: Sequence[Interval]) -> Interval:
    """Returns the mean over seeds, and the lowest and highest end of their intervals."""
    means, lows, highs = zip(*values, strict=True)
    return float(np.mean(means)), min(lows), max(highs)


def shown(values: Sequence[Interval]) -> str:
    """Returns the pooled accuracy of seeds in percent."""
    mean, *ends = pooled(values)
    seeds = f", {len(values)} seeds)" if len(values) > 1 else ")"
    return percent(mean, ends).removesuffix(")") + seeds


def readings(folder: Folder) -> list[Row]:
    """Returns a row a setting, the header first: held-out facts and CTIBench by letters, cloze and ranking."""
    rows = [("setting", *(f"facts, {name}" for name in READINGS), "top letter", "CTIBench, letters", "CTIBench, cloze")]
    for setting in folder.settings:
        share = np.mean([max(record["letter_share"].values()) for record in folder.records(setting, "facts")])
        facts = [shown(folder.found(setting, "facts", key)) for key in READINGS.values()]
        bench = [shown(folder.found(setting, "ctibench", READINGS[name])) for name in ("letters", "cloze")]
        rows.append((setting, *facts, f"{100 * share:.0f}%", *bench))
    return rows


def recall_by_exposure(folder: Folder) -> dict[str, dict[int, tuple[int, float, float, float]]]:
    """Returns for each way to ask: exposures -> facts, recall and its interval, over all rotations."""
    credits = {way: defaultdict(list) for way in ("statement", "question")}
    for run in (record for setting in folder.settings for record in folder.records(setting, "recall")):
        for way, by_count in credits.items():
            for name, count, credit in zip(run["ids"], run["exposures"], run["credits"][way], strict=True):
                by_count[count].append((credit, name.rpartition("/")[0]))  # clustered by what the fact is of
    recall = {way: {} for way in credits}
    for way, by_count in credits.items():
        for count, pairs in sorted(by_count.items()):
            earned, clusters = zip(*pairs, strict=True)
            recall[way][count] = len(pairs), *clustered_interval(np.array(earned), list(clusters))
    return recall


def paired_recall(folder: Folder, other: Folder, setting: str, way: str) -> Interval:
    """Returns by how much recall is higher than in another folder, of the same facts stated as often."""
    ours, theirs = (each.records(setting, "recall")[0] for each in (folder, other))
    if any(ours.get(key) != theirs.get(key) for key in ("ids", "exposures", "sha256")):
        folder.refuse(f"{setting} recall, as {other.path.name}")
    sets = [name.rpartition("/")[0] for name in ours["ids"]]
    found = paired_difference(*(np.array(each["credits"][way]) for each in (ours, theirs)), sets)
    return found.mean, *found.ci95


def exposure(folder: Folder) -> list[Row]:
    """Returns a row a number of exposures, the header first."""
    found = recall_by_exposure(folder)
    rows = [("stated", "facts", "recall, statement in a new wording", "recall, question")]
    for count, (facts, *_) in found["statement"].items():
        cells = [percent(mean, ends) for _, mean, *ends in (way[count] for way in found.values())]
        rows.append((f"{count:,} times", f"{facts:,}", *cells))
    return rows


def exposure_picture(*folders: Folder) -> Figure:
    """Draws recall against exposures, a line for each size of model and way to ask."""
    figure, (axes,) = new_figure(3.6, 6)
    for number, folder in enumerate(folders):
        size = folder.path.name.rpartition("-")[2]
        for way, by_count in recall_by_exposure(folder).items():
            means, lows, highs = (100 * np.array(column) for column in list(zip(*by_count.values(), strict=True))[1:])
            color = WARM if way == "statement" else ACCENT
            places = np.array(list(by_count)) * 1.08**number  # beside each other
            lengths = [means - lows, highs - means]
            style, label = ("o-", "s--")[number], f"{size}, {way}"
            axes.errorbar(places, means, lengths, fmt=style, color=color, capsize=3, label=label)
    axes.axhline(25, color=MUTED, linestyle=":", label="chance")
    axes.set(xscale="log", xlabel="how often a fact was stated", ylabel="recall, %", ylim=(0, 100))
    axes.legend(frameon=False, fontsize=8)
    return figure


def readings_picture(*folders: Folder, settings: Sequence[str] = ()) -> Figure:
    """Draws, a row a size and setting, accuracy on held-out facts by letters, cloze and ranking, with intervals.

    By default the settings are all of each folder.
    """
    drawn = [(folder, setting) for folder in folders for setting in settings or folder.settings]
    names = [f"{folder.path.name.rpartition('-')[2]}, {setting}" for folder, setting in drawn]
    figure, (axes,) = new_figure(1.2 + 0.45 * len(names), 6)
    for shift, (name, key), color in zip((-0.2, 0.0, 0.2), READINGS.items(), (WARM, ACCENT, INK), strict=True):
        rows = [pooled(folder.found(setting, "facts", key)) for folder, setting in drawn]
        means, lows, highs = (100 * np.array(column) for column in zip(*rows, strict=True))
        places = np.arange(len(names)) + shift
        axes.errorbar(means, places, xerr=[means - lows, highs - means], fmt="o", color=color, label=name)
    axes.axvline(25, color=MUTED, linestyle=":")
    axes.set_yticks(range(len(names)), names)
    axes.invert_yaxis()
    axes.set(xlabel="accuracy on held-out facts, %", xlim=(0, 100))
    axes.legend(frameon=False, fontsize=8, loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=len(READINGS))
    return figure


PICTURES = {
    "readings.png": (functools.partial(readings_picture, settings=["knowledge"]), ["facts-nano", "facts-mini"]),
    "latch.png": (readings_picture, ["facts-mini"]),
    "exposure.png": (exposure_picture, ["exposure-nano", "exposure-mini"]),
}


def filled(text: str, records: Path) -> str:
    """Returns the text with its look-ups replaced. Raises UserError for one that no record answers."""

    campaign = records / "campaign"

    def look_up(asked: re.Match) -> str:
        match asked[1].split():
            case ["items", folder, setting, evaluation]:
                return f"{Folder(campaign / folder).records(setting, evaluation)[0]['n']:,}"
            case ["baseline", folder, setting, evaluation, name]:
                return Folder(campaign / folder).baseline(setting, evaluation, name)
            case ["readings", folder]:
                return markdown(readings(Folder(campaign / folder)))
            case ["exposure", folder]:
                return markdown(exposure(Folder(campaign / folder)))
            case ["paired", folder, other, setting, way]:
                return shown([paired_recall(Folder(campaign / folder), Folder(campaign / other), setting, way)])
            case ["hours", folder, *setting]:
                return f"{Folder(campaign / folder).hours(*setting):.1f}"
            case [folder, setting, evaluation, *key] if key:  # the name of a control has blanks
                return shown(Folder(campaign / folder).found(setting, evaluation, " ".join(key)))
        raise UserError(f"{TEXT} has {asked[0]}. Write a look-up as {{{{FOLDER SETTING EVALUATION KEY}}}}.")

    return re.sub(r"\{\{(.+?)\}\}", look_up, text, flags=re.DOTALL)  # a look-up may break over lines


def results(records: Path = RECORDS) -> str:
    """Returns RESULTS.md: the campaign's text with its figures, then the tables of the single runs."""
    runs = [run_record.read(workdir) for workdir in find_runs(records)]
    beside, broken = read_beside(sorted(records.glob("*.json")))
    if broken:
        raise UserError(broken[0])
    tables = results_of(parts_of(runs, beside)).partition("\n\n")[2]
    return filled(read_text(records / TEXT), records) + "\n" + tables


@command
def main(argv: Sequence[str]) -> int:
    """Writes RESULTS.md and its pictures from the records in the repository."""
    parser_of(main).parse_args(argv)
    text, campaign = results(), RECORDS / "campaign"
    for name, (draw, folders) in PICTURES.items():
        if f"campaign/{name}" in text:
            drawn = draw(*(Folder(campaign / folder) for folder in folders if (campaign / folder).is_dir()))
            drawn.savefig(campaign / name, dpi=150, metadata={"Software": None})
    write_text(ROOT / "RESULTS.md", text)
    print(ROOT / "RESULTS.md")
    return 0


if __name__ == "__main__":
    sys.exit(main())
