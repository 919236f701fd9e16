"""The table of datasets. To add a dataset, write a module in this folder and add its row to `DATASETS`.

The module has a `VERSION`, and `dataset(inputs: BuildInputs)` returns the rows of each split
(`ghost_jax/data/examples.py`). A builder that calls another one gets a new `VERSION` with it. This file imports nothing
of the project, so that `ghost_jax.config` can read it.
"""

import dataclasses

BOOK = ("attack", "capec", "cwe", "embedded")  # sources, as documents name them, whose pages are asked about


@dataclasses.dataclass(frozen=True)
class Dataset:
    """A row of `DATASETS`."""

    stage: str  # "pretrain" for rows of a base, "chat" for conversations
    title: str  # the dataset's name in report tables
    about: str  # its content and what that comes from, for messages; may contain keys of `config.data`
    builder: str = ""  # "module.function" in this folder, "NAME.dataset" unless given
    options: tuple[str, ...] = ()  # the keys of `config.data` that its rows depend on, beside `OPTIONS`
    sources: tuple[str, ...] | None = None  # the documents it reads, by their source; None for all
    lettered: bool = False  # its answers begin with a letter, for `objective.letter`
    ranked: bool = False  # its options are branches, for `objective.ranking`
    shared: bool = False  # every chat recipe validates on it, so that losses of recipes compare


OPTIONS = {"pretrain": ("seq_len",), "chat": ("seed", "layout")}  # stage -> the keys that all its datasets depend on

DATASETS = {
    "pretrain": Dataset("pretrain", "corpus", "documents in windows of tokens"),
    # Facts of vulnerabilities are about descriptions, which are no names: reference pages alone.
    "facts": Dataset(
        "pretrain",
        "rewritten facts",
        f"typed facts of {', '.join(BOOK)} in many surface forms and both directions",
        builder="rewrite.dataset",
        sources=BOOK,
    ),
    "exposure": Dataset(
        "pretrain",
        "facts by exposure",
        f"sets of four typed facts of {', '.join(BOOK)}, each stated 10 to 1,000 times, and documents without them",
        options=("seed",),
        sources=BOOK,
    ),
    "qa": Dataset(
        "chat",
        "Q&A",
        "questions from templates on documents of data.qa_sources {qa_sources}, "
        "about data.qa_per_source={qa_per_source} documents and as many facts of each",
        options=("qa_sources", "qa_per_source"),
        shared=True,
    ),
    "mcq": Dataset(
        "chat",
        "raw MCQ",
        "multiple choice from facts of weakness classes, tactics and acronyms, at least four of a kind",
        lettered=True,
        shared=True,
    ),
    "cot": Dataset(
        "chat",
        "CoT MCQ",
        "the questions of mcq, answered with a reason",
        options=("cot",),
        lettered=True,
        shared=True,
    ),
    "small_talk": Dataset("chat", "small talk", "hand-written pairs that come with the package", shared=True),
    "fact_mcq": Dataset(
        "chat",
        "fact MCQ",
        "multiple choice from typed facts of one relation in sets of four, as all sources but cti state them",
        lettered=True,
    ),
    "matching_mcq": Dataset(
        "chat",
        "matching MCQ",
        "multiple choice that quotes its answer, a phrase of a document to be found among the options",
        builder="mcq.matching_dataset",
        lettered=True,
    ),
    "raft": Dataset("chat", "RAFT MCQ", "the questions of mcq with retrieved passages", lettered=True),
    "rank": Dataset("chat", "ranked MCQ", "the questions of mcq, their options ranked", ranked=True),
    "fact_rank": Dataset(
        "chat",
        "ranked fact MCQ",
        "the questions of fact_mcq, their options ranked",
        builder="rank.fact_dataset",
        ranked=True,
    ),
    "read": Dataset(
        "chat",
        "read MCQ",
        "the questions of fact_mcq with retrieved passages, their options ranked",
        builder="rank.read_dataset",
        ranked=True,
    ),
}


def names_of(stage: str) -> tuple[str, ...]:
    """Returns the datasets of a stage, "pretrain" or "chat"."""
    return tuple(name for name, row in DATASETS.items() if row.stage == stage)
