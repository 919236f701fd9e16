"""The table of datasets. To add a dataset, write a module in this folder and add its row to `DATASETS`.

The module has a `VERSION`, and `dataset(inputs: BuildInputs)` returns the rows of each split
(`ghost_jax/data/examples.py`). This file imports nothing of the project, so that `ghost_jax.config` can read it.
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
    # modules of `ghost_jax` whose `VERSION` decides its rows, besides its own and those of every dataset
    made_by: tuple[str, ...] = ()
    options: tuple[str, ...] = ()  # the keys of `config.data` that its rows depend on
    sources: tuple[str, ...] | None = None  # the documents it reads, by their source; None for all
    reads_corpus: bool = True  # False where its rows come from the package alone
    lettered: bool = False  # its answers begin with a letter, for `objective.letter`
    ranked: bool = False  # its options are branches, for `objective.ranking`
    shared: bool = False  # every chat recipe validates on it, so that losses of recipes compare


_MCQ = ("data.builders.mcq", "text.mcq_format")
_FACT_MCQ = ("data.builders.fact_mcq", "data.wordings.question_forms", "text.mcq_format")
_PASSAGES = ("data.builders.raft", "data.retrieval.bm25")

DATASETS = {
    "pretrain": Dataset("pretrain", "corpus", "documents in windows of tokens"),
    # Facts of vulnerabilities are about descriptions, which are no names: reference pages alone.
    "facts": Dataset(
        "pretrain",
        "rewritten facts",
        f"typed facts of {', '.join(BOOK)} in many surface forms and both directions",
        builder="rewrite.dataset",
        made_by=("data.builders.pretrain",),
        sources=BOOK,
    ),
    "exposure": Dataset(
        "pretrain",
        "facts by exposure",
        f"sets of four typed facts of {', '.join(BOOK)}, each stated 10 to 1,000 times, and documents without them",
        made_by=("data.builders.pretrain", "data.builders.rewrite", *_FACT_MCQ[:2]),
        options=("seed",),
        sources=BOOK,
    ),
    "qa": Dataset(
        "chat",
        "Q&A",
        "questions from templates on documents of data.qa_sources {qa_sources}, "
        "at most data.qa_per_source={qa_per_source} of each",
        options=("seed", "qa_sources", "qa_per_source"),
        shared=True,
    ),
    "mcq": Dataset(
        "chat",
        "raw MCQ",
        "multiple choice from facts of weakness classes, tactics and acronyms, at least four of a kind",
        made_by=_MCQ,
        options=("seed", "layout"),
        lettered=True,
        shared=True,
    ),
    "cot": Dataset(
        "chat",
        "CoT MCQ",
        "the questions of mcq, answered with a reason",
        made_by=_MCQ,
        options=("seed", "layout", "cot"),
        lettered=True,
        shared=True,
    ),
    "small_talk": Dataset(
        "chat",
        "small talk",
        "hand-written pairs that come with the package",
        made_by=("data.sources.embedded", "data.storage.schema", "data.storage.text_cleaning"),
        reads_corpus=False,
        shared=True,
    ),
    "fact_mcq": Dataset(
        "chat",
        "fact MCQ",
        "multiple choice from typed facts of one relation in sets of four, as all sources but cti state them",
        made_by=_FACT_MCQ,
        options=("seed", "layout"),
        lettered=True,
    ),
    "raft": Dataset(
        "chat",
        "RAFT MCQ",
        "the questions of mcq with retrieved passages",
        made_by=(*_MCQ, *_PASSAGES),
        options=("seed", "layout"),
        lettered=True,
    ),
    "rank": Dataset(
        "chat",
        "ranked MCQ",
        "the questions of mcq, their options ranked",
        made_by=_MCQ,
        options=("seed",),
        ranked=True,
    ),
    "fact_rank": Dataset(
        "chat",
        "ranked fact MCQ",
        "the questions of fact_mcq, their options ranked",
        builder="rank.fact_dataset",
        made_by=_FACT_MCQ,
        options=("seed",),
        ranked=True,
    ),
    "read": Dataset(
        "chat",
        "read MCQ",
        "the questions of fact_mcq with retrieved passages, their options ranked",
        builder="rank.read_dataset",
        made_by=(*_FACT_MCQ, *_PASSAGES),
        options=("seed",),
        ranked=True,
    ),
}


def names_of(stage: str) -> tuple[str, ...]:
    """Returns the datasets of a stage, "pretrain" or "chat"."""
    return tuple(name for name, row in DATASETS.items() if row.stage == stage)
