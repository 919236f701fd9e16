"""Baselines of the tasks of CTIBench on vulnerabilities, made from labelled descriptions that hold no test item."""

import re
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from scipy.sparse import hstack

from ghost_jax.core.console import Progress
from ghost_jax.core.errors import UserError
from ghost_jax.core.paths import data_folders
from ghost_jax.data import corpus
from ghost_jax.data.items.items import Items
from ghost_jax.data.sources import data_files
from ghost_jax.data.storage import tables
from ghost_jax.data.storage.schema import Record
from ghost_jax.runs import run_dir
from ghost_jax.runs.evaluation import BaselineText

TASK_FILES = ("mcq", "rcm", "rcm-2021", "vsp", "ate", "taa")
COPIED = 120  # texts that begin with the same characters are near copies
WORDS = {"ngram_range": (1, 2), "max_features": 200_000}  # words and pairs of words
CHARACTERS = {"analyzer": "char_wb", "ngram_range": (4, 5), "max_features": 100_000}  # parts of words
# The linear model is the weighted sum of a support vector machine on words and a logistic regression on words and
# characters. All was chosen on records held out of the corpus.
MACHINES = (
    (3.0, {"loss": "hinge", "alpha": 1e-5, "max_iter": 5}),
    (1.0, {"loss": "log_loss", "alpha": 4e-6, "max_iter": 3}),
)
CLASSES = 150  # labels that the linear model knows: the most frequent

_CVE = re.compile(r"CVE-\d{4}-\d{4,}", re.IGNORECASE)
_HEADER = re.compile(r"\A\s*CVE-\S+\s*(?:^(?:Product|Weakness): .*\n?)*", re.MULTILINE)
_SCORE = re.compile(r"CVSS (?:v?[\d.]+ )?Base Score [\d.]+(?: \([^)]*\))?|\(?CVSS:3\.\d/[\w:/]+\)?")

Rivals = tuple[dict[str, list[str]], BaselineText]  # the answers of baselines by name, and what they were made from


class Labelled(NamedTuple):
    id: str
    text: str
    label: str


def task_file(name: str, data_dir: Path | None) -> Path:
    """Returns the path of a task's file in the data folders. Raises UserError where there is none."""
    places = [folder / f"ctibench/cti-{name}.tsv" for folder in data_folders(data_dir)]
    if found := next((place for place in places if place.is_file()), None):
        return found
    fix = "Run python -m ghost_jax.data.fetch --sources=ctibench, or set GHOST_DATA"
    raise UserError(f"There is no {' or '.join(map(str, places))}. {fix}: the baselines need the files of all tasks.")


def copy_key(text: str) -> str:
    """Returns the first `COPIED` characters of the words of a description in lower case, without a CVSS score."""
    return " ".join(re.findall(r"\w+", _SCORE.sub("", text).lower()))[:COPIED]


def records_of(source: str, data_dir: Path | None) -> tuple[list[Record], tuple[dict[str, Any], ...]]:
    """Returns the records of a source and the identity of its files. Raises UserError where no data folder has them."""
    inputs, _ = corpus.locate([source], data_dir, run_dir.say, stand_in=False)
    run_dir.say(f"reading {', '.join(each.path.name for each in inputs)} for the baselines")
    records = [record for each in inputs for record in data_files.read(source, each.path)]
    return records, tuple(each.identity() for each in inputs)


def vulnerability_baselines(items: Items, data_dir: Path | None, *, label_of: Callable[[str], str]) -> Rivals:
    """Returns the answers of `answers`, made from the labelled vulnerabilities of the corpus `cve`.

    Left out are the CVE ids in the files of all tasks of CTIBench and near copies of their texts. Raises UserError
    where the corpus or one of those files is absent.
    """
    ids, keys = _test_items(items, data_dir)
    records, inputs = records_of("cve", data_dir)
    found = [(_cve_of(each), _HEADER.sub("", each.text), label_of(each.text)) for each in records]
    labelled = [Labelled(name, _SCORE.sub("", text).strip(), label) for name, text, label in found if label]
    others = [each for each in labelled if each.id not in ids]
    kept = [each for each in others if each.text and copy_key(each.text) not in keys]
    by_id, by_text = len(labelled) - len(others), len(others) - len(kept)
    used = BaselineText(inputs=inputs, records=len(kept), left_out_by_id=by_id, left_out_by_text=by_text)
    return answers(kept, items), used


def _cve_of(record: Record) -> str:
    found = _CVE.search(f"{record.title} {record.id} {record.text}")
    return found[0].upper() if found else record.id


def _test_items(items: Items, data_dir: Path | None) -> tuple[set[str], set[str]]:
    """The CVE ids in the files of all tasks of CTIBench and in `items`, and the keys of their texts."""
    ids, keys = {item.id.upper() for item in items}, {copy_key(item.text) for item in items}
    for path in (task_file(name, data_dir) for name in TASK_FILES):
        for _, cells in tables.read(path):
            ids.update(each.upper() for cell in cells.values() for each in _CVE.findall(cell))
            keys.update(copy_key(cells[column]) for column in ("Description", "Text") if column in cells)
    return ids, keys - {""}


def answers(records: Sequence[Labelled], items: Items) -> dict[str, list[str]]:
    """Returns the answers of the most frequent label, of the nearest text and of a linear model, by name.

    The linear model fits a classifier for each label, or for each part of it between slashes (a metric of a vector).
    Raises UserError where a record is a test item by id or text, and where there is none.
    """
    from sklearn.neighbors import KNeighborsClassifier  # not above: it takes a second

    ids, keys = {item.id.upper() for item in items}, {copy_key(item.text) for item in items} - {""}
    if held := [each.id for each in records if each.id.upper() in ids or copy_key(each.text) in keys]:
        raise UserError(f"The baselines' text holds test items, the first of them {held[0]}. Leave them out.")
    if not records:
        raise UserError("The corpus holds no labelled vulnerability but test items. Give a complete cve.jsonl.")
    labels = [each.label for each in records]
    run_dir.say(f"weighing the words of {len(records):,} labelled descriptions")
    known, vectorizer = vectors([each.text for each in records])
    texts = [_SCORE.sub("", item.text) for item in items]
    asked = vectorizer.transform(texts)
    spelled, speller = vectors([each.text for each in records], CHARACTERS)
    pairs = (known, asked), (hstack([known, spelled]).tocsr(), hstack([asked, speller.transform(texts)]).tocsr())
    nearest = KNeighborsClassifier(n_neighbors=1, metric="cosine").fit(known, labels)
    return {
        "most frequent": [Counter(labels).most_common(1)[0][0]] * len(items),
        "nearest neighbour": nearest.predict(asked).tolist(),
        "linear model": _linear(pairs, [label.split("/") for label in labels]),
    }


def vectors(texts: Iterable[str], terms: dict[str, Any] = WORDS) -> tuple[Any, Any]:
    """Returns the terms of texts weighted by TF-IDF, a sparse [N, F], and the fitted vectorizer."""
    from sklearn.feature_extraction.text import TfidfVectorizer  # not above: it takes a second

    vectorizer = TfidfVectorizer(sublinear_tf=True, **terms)
    return vectorizer.fit_transform(texts), vectorizer


def _linear(pairs: Sequence[tuple[Any, Any]], labels: Sequence[Sequence[str]]) -> list[str]:
    """The labels by `MACHINES`, one class against the rest for each part of a label.

    Args:
      pairs: for each machine the features of the labelled texts [N, F] and of those asked [M, F].
    """
    from sklearn.linear_model import SGDClassifier

    parts = [np.array(part) for part in zip(*labels, strict=True)]
    classes = [[name for name, _ in Counter(part.tolist()).most_common(CLASSES)] for part in parts]
    chosen = []
    with Progress("linear model", sum(map(len, classes)), unit="classes") as progress:
        for part, names in zip(parts, classes, strict=True):
            scores = np.zeros((pairs[0][1].shape[0], len(names)))
            for column, name in enumerate(names):
                for (known, asked), (weight, options) in zip(pairs, MACHINES, strict=True):
                    if len(names) > 1:
                        machine = SGDClassifier(**options, tol=None, average=True, random_state=0)
                        scores[:, column] += weight * machine.fit(known, part == name).decision_function(asked)
                progress.advance(1)
            chosen.append([names[best] for best in scores.argmax(axis=1)])
    return ["/".join(label) for label in zip(*chosen, strict=True)]
