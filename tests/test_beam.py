"""ghost_jax/data/beam.py: workers in any order prepare what one machine does."""

import dataclasses
import itertools
import json
import os
import random
import shutil
import subprocess
import sys
from collections import defaultdict
from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ghost_jax.data import beam, dedup
from ghost_jax.data.builders import pretrain
from ghost_jax.data.corpus import documents_of
from ghost_jax.data.storage.artifact_cache import manifest
from ghost_jax.text import tokenizer
from tests.conftest import ROOT, TINY, paragraph_of, set_all
from tests.test_duplicates import families, prose, record
from tests.test_sources_formats import SAMPLES

PREPARE = ["ghost_jax.data.prepare", "--config=configs/pretrain_v05.py:nano", *set_all(TINY)]


@settings(max_examples=40)
@given(families, st.lists(st.integers(0, 30), max_size=3), st.randoms(use_true_random=False))
def test_the_documents_that_share_a_key_are_judged_as_among_all_others(records, cuts, rng):
    rows = dedup.fingerprints(records)
    parts = list(enumerate(np.split(rows, sorted(min(cut, len(rows)) for cut in cuts))))
    first = np.cumsum([0, *(len(part) for _, part in parts)])
    rng.shuffle(parts)
    groups = defaultdict(list)
    for part, mine in parts:
        for kind, (numbers, keys) in enumerate(dedup.keys(mine)):
            groups[kind].append((first[part] + numbers, keys))
    shared = sorted(set(itertools.chain.from_iterable(map(beam._shared, groups.items()))))
    reasons = dict(zip(shared, dedup.judge(rows[shared]), strict=True))
    assert [reasons.get(row, "") for row in range(len(rows))] == dedup.judge(rows)


def content_of(rows: Iterable[dict]) -> dict[str, tuple]:
    return {row["id"]: (row["tokens"].tolist(), row["mask"].tolist()) for row in rows}


@pytest.mark.parametrize(("count", "window"), [(1, 4096), (1, 4), (49, 31), (200, 31), (200, 1000)])
def test_blocks_give_the_windows_of_the_whole_corpus(tmp_path, monkeypatch, count, window):
    monkeypatch.setattr(beam, "BLOCK", 900)
    rng = random.Random(count)
    documents, vocabulary = tmp_path / "documents.jsonl", tmp_path / "tokenizer.json"
    rows = (dataclasses.asdict(record(str(i), prose(i, rng.randint(1, 60)))) for i in range(count))
    documents.write_text("".join(json.dumps(row) + "\n" for row in rows))
    tokenizer.train([prose(0, 500)], 400).save(vocabulary)
    blocks = list(beam._blocks(documents))
    assert len(blocks) > count // 10
    for split in pretrain.SPLITS:
        tokens = [beam._tokens(block, str(documents), str(vocabulary), split) for block in blocks]
        starts = beam._starts(map(beam._length, tokens))
        rng.shuffle(tokens)
        groups = defaultdict(list)
        for number, piece in itertools.chain.from_iterable(beam._pieces(each, starts, window) for each in tokens):
            groups[number].append(piece)
        found = dict(itertools.chain.from_iterable(beam._row(group, split, window) for group in groups.items()))
        expected = pretrain.build(lambda: documents_of(tmp_path), tokenizer.load(vocabulary), split, window)
        assert content_of(found.values()) == content_of(expected)


@pytest.mark.parametrize(
    ("flags", "code", "named"),
    [
        (["--runner=spark"], 2, "spark"),
        (["--beam.num_workers=2"], 2, "--beam.num_workers"),
        (["--runner=direct", "--beam.num_workers"], 2, "--beam.num_workers"),
        (["--runner=flink"], 1, "GHOST_OFFLINE"),
        (["--runner=direct"], 1, "requirements-beam.txt"),
    ],
)
def test_a_runner_that_is_wrong_missing_or_not_installed_is_refused(ghost, monkeypatch, flags, code, named):
    monkeypatch.setitem(sys.modules, "apache_beam", None)
    assert named in ghost.refused_here(*PREPARE, *flags, code=code)


@pytest.fixture
def beamed(ghost) -> Callable[..., subprocess.CompletedProcess]:
    """Runs a command by the Python that GHOST_BEAM_PYTHON names, which has requirements-beam.txt, with a cache."""
    python = os.environ.get("GHOST_BEAM_PYTHON")
    if not python:
        pytest.skip("GHOST_BEAM_PYTHON names no Python with requirements-beam.txt")

    def run(cache: Path, *words: str) -> subprocess.CompletedProcess:
        env = ghost.environment({"XDG_CACHE_HOME": str(cache)})
        return subprocess.run([python, "-m", *words], cwd=ROOT, env=env, capture_output=True, text=True, timeout=300)

    return run


@pytest.mark.slow
@pytest.mark.parametrize("workers", [1, 2])
def test_the_direct_runner_prepares_what_this_machine_does(ghost, beamed, tmp_path, workers):
    (data := tmp_path / "data").mkdir()
    for name, words in (("cti", 300), ("cve", 301)):  # they share a text, and one that differs in its last word
        texts = ["The same report in both. " * 9, prose(1, words), *(prose(words * n, 60) for n in range(2, 300))]
        rows = ({"id": f"{name}-{i}", "source": name, "text": text} for i, text in enumerate(texts))
        (data / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    shutil.copy(SAMPLES["kev"][0], data / "known_exploited_vulnerabilities.json")
    command = [*PREPARE, f"--data_dir={data}", "--config.data.sources=cti,cve,kev,embedded"]
    command.append("--config.data.mixture.facts=1")
    alone, together = tmp_path / "alone", tmp_path / "together"
    ghost.here(*command, env={"XDG_CACHE_HOME": str(alone)})
    mode = "in_memory" if workers == 1 else "multi_processing"
    options = [f"--beam.direct_num_workers={workers}", f"--beam.direct_running_mode={mode}"]
    done = beamed(together, *command, "--runner=direct", *options)
    assert done.returncode == 0, done.stderr[-3000:]
    assert "reading" not in ghost.here(*command, env={"XDG_CACHE_HOME": str(together)}).stdout, "the stores are found"
    here, there = (
        {path.name: manifest(path) for path in (cache / "ghost_jax" / "stores").glob("[!.]*")}
        for cache in (alone, together)
    )
    assert here == there, "and with them the hash of every file"
    (dropped,) = (store.duplicates_dropped for store in here.values() if store.kind == "corpus")
    assert dropped["cve"] == {"id": 0, "text": 1, "near": 1}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("flag", "code", "named"),
    [
        ("--beam.direct_num_worker=2", 2, "direct_num_workers"),
        ("--beam.direct_num_workers=two", 2, "--direct_num_workers"),
        ("--config.data.sources={}", 1, "broken.jsonl, line 2"),
    ],
)
def test_a_fault_of_a_pipeline_is_one_paragraph(beamed, tmp_path, flag, code, named):
    (tmp_path / "broken.jsonl").write_text('{"text": "one"}\n{"text": }\n')
    done = beamed(tmp_path, *PREPARE, "--runner=direct", flag.format(tmp_path / "broken.jsonl"))
    assert named in paragraph_of(done, code)
