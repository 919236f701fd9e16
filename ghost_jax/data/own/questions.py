"""A user's own multiple-choice questions: a file of `data.questions` is a dataset of the chat stage.

The file has any of the formats of `ghost_jax.data.items.formats`. A part of it is held out, and is scored by
`python -m evals.ctibench --items`.
"""

from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path

from ghost_jax.core.errors import UserError
from ghost_jax.data.builders import mcq
from ghost_jax.data.examples import BuildInputs, Question, Rows, rng_of
from ghost_jax.data.items.formats import CTIBENCH_MCQ_SHA256, read_items
from ghost_jax.data.items.items import Item, blemishes, components, cyclic_orders, permute

VERSION = 4  # raise it when the same file gives other questions or another split

SHARES = {"test": 0.2, "validation": 0.1}  # of the questions, at least; the others are of the train split


def dataset(inputs: BuildInputs, name: str, path: Path) -> Rows:
    """Writes the questions of a file as items, and returns their rows in the layout of the config."""
    asked = read(name, path, inputs.options.question_group, inputs.options.seed, inputs.say)
    inputs.write_items(asked)
    return inputs.render(mcq.build(asked, inputs.options.seed, inputs.options.layout))


def read(name: str, path: Path, group: str, seed: int, say: Callable[[str], None] = print) -> list[Question]:
    """Returns the questions of a file, each in one split.

    Questions with the same value under the key `group` are in one split; without a key, those with the same url. So
    are those with the same question or the same options. A question that is trained on has its options in a cyclic
    shift drawn by `seed`, so that each letter is the gold one about equally often.

    Raises UserError, which names the place, for an invalid file, for CTIBench, and for fewer than three groups.
    """
    items = read_items(path, page=group)
    for line in blemishes(path.name, [*items.quirks, *items.left_out]):
        say(line)
    if items.sha256 == CTIBENCH_MCQ_SHA256:
        raise UserError(f"{path} is CTIBench, which is for scoring only. Leave out data.questions.{name}.")
    groups = components(items.items, by_question=True)
    split_of = _splits(groups)
    if len(set(split_of.values())) < 3:
        raise UserError(
            f"{path} has {len(groups):,} questions in {len(split_of):,} groups, which are too few or too large to hold "
            "some out. Add questions, or name another key in data.question_group."
        )
    return [_question(name, item, split_of[group], seed) for item, group in zip(items, groups, strict=True)]


def _splits(groups: Sequence[str]) -> dict[str, str]:
    """Returns the split of each group; one with more than half of the questions is trained on."""
    sizes, split_of = Counter(groups), {}
    drawn = sorted(sizes, key=lambda group: rng_of("split", group).random())
    for split, share in SHARES.items():
        held = 0
        for group in drawn:
            if group not in split_of and held < share * len(groups) and sizes[group] <= len(groups) / 2:
                split_of[group] = split
                held += sizes[group]
    return dict.fromkeys(drawn, "train") | split_of


def _question(name: str, item: Item, split: str, seed: int) -> Question:
    if split != "test":
        item = permute(item, rng_of(seed, "shift", name, item.id).choice(cyclic_orders(len(item.options))))
    return Question(**vars(item) | {"id": f"{name}/{item.id}"}, source=name, split=split, evidence="")
