"""What is timed: the sizes of a benchmark, the same for all sides. Imports neither JAX nor PyTorch."""

import dataclasses
from collections.abc import Mapping
from pathlib import Path

# size -> the recipes of its base and of its chat model
RECIPES = {
    "nano": ("configs/pretrain_v05.py:nano", "configs/chat_v5.py:nano"),
    "mini": ("configs/pretrain_v05.py:mini", "configs/chat_v5.py:mini"),
    "small36m": ("configs/pretrain_v05.py", "configs/chat_v5.py"),
    "base350m": ("configs/pretrain_base350m.py", "configs/chat_base350m.py"),
}
# precision that a side computes in -> how far its first figures may be from ours in float32, as a share of them.
# Weights of what is trained are float32 always.
TOLERANCE = {"float32": 1e-4, "bfloat16": 2e-2}
FLOAT32, BFLOAT16 = PRECISIONS = tuple(TOLERANCE)


def precisions_of(machine: Mapping) -> tuple[str, ...]:
    """Returns the precisions measured on a record's `machine`: float32 alone where a CPU has no units for bfloat16.

    Of a processor that was not recorded both count.
    """
    return (FLOAT32,) if machine["default"] == FLOAT32 and machine["flags"] else PRECISIONS


# Of all sides alike. The rate is too low to move anything in the few updates that are timed.
RATE = 1e-6
OPTIMIZER = {"b1": 0.9, "b2": 0.95, "weight_decay": 0.1, "clip_norm": 1.0}

SEED = 0  # of weights, tokens and shuffles
LETTERS = "ABCD"  # both sides score four
PRODUCTS = 5  # of large matrices a turn: their rate is the ceiling

PADDED_BATCH = 8  # conversations that TRL's trainer pads and updates with at once, by default
SCORED_BATCH = 32  # prompts that the peer pads and scores at once


@dataclasses.dataclass(frozen=True)
class Work:
    """How much of everything is done.

    Attributes:
      size: a name in `RECIPES`.
      batch_size, seq_len: rows and tokens a row of a pretraining step.
      steps: updates a turn.
      rounds: turns of each side that are timed.
      product: width of the matrices whose products are the ceiling.
      questions: asked in each of their four orders.
      items: the file that they are taken from, spread over it; "" for those that the chat recipe holds out.
      prompt_tokens, new_tokens: read and written of one text a turn.
      batches: of chat_v5's packed mix that the loader makes a turn.
    """

    size: str
    batch_size: int
    seq_len: int
    steps: int
    rounds: int
    questions: int
    items: str = ""
    product: int = 2048
    prompt_tokens: int = 200
    new_tokens: int = 128
    batches: int = 512

    @property
    def base_recipe(self) -> str:
        return RECIPES[self.size][0]

    @property
    def chat_recipe(self) -> str:
        return RECIPES[self.size][1]

    @property
    def turns(self) -> int:
        """Turns that a side does: warming up, once more unobserved, and those that are timed."""
        return self.rounds + 2


class Files:
    """Where lies what `tests.bench.subject` writes and the sides read.

    Attributes:
      base: weights of the untrained base, under Llama's names.
      rows: what it is trained on.
      chat: the run directory of an untrained chat model.
      exported: the same for transformers.
      prompts: "part N", what is scored in turn N; "continued", the one prompt that is; "letters", the letters' ids.
      records: "ids N" and "learnt N", the conversations of turn N.
    """

    def __init__(self, folder: Path):
        self.base, self.rows = folder / "base", folder / "rows.npz"
        self.chat, self.exported = folder / "chat", folder / "exported"
        self.prompts, self.records = folder / "prompts.npz", folder / "records.npz"
