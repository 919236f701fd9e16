"""evals/items/ctibench.py: the audit's flags fit the published file, quote none of it, and are beside every score."""

import json
import re
from collections import Counter

from evals.items.ctibench import doubtful, flags, part_of
from ghost_jax.data.items.formats import read_items
from ghost_jax.data.items.items import LETTERS, Items
from tests.conftest import ROOT

QUOTED = 7  # words in a row


def words(text: str) -> str:
    return f" {' '.join(re.findall(r'[a-z0-9]+', text.lower()))} "


def test_every_flag_fits_its_question_and_quotes_none_of_it(ghost_data):
    items = read_items(ghost_data / "ctibench" / "cti-mcq.tsv")
    by_id = {item.id: item for item in items}
    assert flags().keys() <= by_id.keys()
    for name, flag in flags().items():
        item, right = by_id[name], {LETTERS.index(letter) for letter in flag["right"]}
        assert right <= set(range(len(item.options)))
        fits = {"wrong_gold": right and item.answer not in right, "several_right": len(right) > 1}
        assert fits.get(flag["kind"], not right), name
        published, reason = words(" | ".join((item.question, *item.options))), words(flag["reason"]).split()
        runs = (reason[start : start + QUOTED] for start in range(len(reason) - QUOTED + 1))
        assert not [run for run in runs if f" {' '.join(run)} " in published]
    assert doubtful(items) == flags().keys()
    assert doubtful(part_of(items, "dev")) < flags().keys()
    assert doubtful(Items("own", "", "", items.items)) == set()


def test_the_page_counts_the_kinds_and_has_the_figures_of_the_records():
    page = (ROOT / "docs" / "gold_audit.md").read_text()
    records = ROOT / "evals" / "records"
    reports = json.loads((records / "published_models.json").read_text())["predictions"]
    reports["our open-book reader, nothing fitted"] = json.loads((records / "open_book.json").read_text())
    for name, report in reports.items():
        every, sure = (100 * report[key]["accuracy"] for key in ("headline", "without_doubtful_gold"))
        assert f"| {name} | {every:.2f} | {sure:.2f} |" in page
    counts = Counter(flag["kind"] for flag in flags().values())
    assert dict(re.findall(r"^\| `(\w+)` \| (\d+) \|", page, re.M)) == {kind: str(n) for kind, n in counts.items()}
    assert f"{len(flags())} ({len(flags()) / 2500:.1%})" in page
