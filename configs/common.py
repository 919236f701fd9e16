"""What recipes share: presets, and the study's recipes. `ghost_jax/config/keys.py` has every key and its default."""

from types import ModuleType

from ml_collections import ConfigDict

from ghost_jax.config.keys import defaults
from ghost_jax.core.errors import UsageError, did_you_mean
from ghost_jax.model.config import SIZES

PRESETS = ("nano", "mini")  # sizes for minutes and for hours on a laptop
SAVED = "saved"  # beside a size, where a recipe has it: the run as it was recorded, not as in the study's table


def scale_of(preset: str) -> str:
    """Returns the size of `PRESETS` that a preset names, "full" where it names none.

    Raises UsageError for an unknown word, for several sizes, and for "saved", which `study` removes where it is known.
    """
    words = preset.split(",") if preset else []
    for word in words:
        if word not in (*PRESETS, SAVED):
            raise UsageError(f"There is no preset {word}.{did_you_mean(word, [*PRESETS, SAVED])}")
    if SAVED in words:
        raise UsageError(
            f"This config has no variant {SAVED}: it is not known how its recorded run differs from its row in the "
            f"study's table. Leave {SAVED} out."
        )
    if len(words) > 1:
        raise UsageError(f"The preset {preset} names {len(words)} sizes. Name one of {', '.join(PRESETS)}.")
    return words[0] if words else "full"


def saved_in(preset: str) -> tuple[str, bool]:
    """Returns a preset without the word "saved", and whether that was among its words: ("nano", True)."""
    words = preset.split(",")
    return ",".join(word for word in words if word != SAVED), SAVED in words


def unaccumulated(c: ConfigDict, batch_size: int) -> None:
    """Makes a chat config update as the study's trainer did.

    That trainer split a batch where it meant to accumulate batches: an update was `batch_size` conversations, not 32.
    Each part had its own mean, so that a record with a long answer weighed no more than one with a letter.
    """
    c.batch_size = c.micro_batch_size = batch_size
    c.data.packing = False  # a conversation a row: the number of rows is the number of records
    c.loss_norm = "record_mean"


def study(base: ModuleType, preset: str, published: dict, *, recorded_rows: int = 0, **recipe: float) -> ConfigDict:
    """Returns a chat recipe of the study, see `chat_on`; with "saved" in the preset the run as it was recorded.

    Args:
      published: its row of the study's table. Its steps and rate are the recipe's unless it names others.
      recorded_rows: conversations in an update of the recorded run; 0 where it is not known how that run differs.
    """
    size, saved = saved_in(preset) if recorded_rows else (preset, False)
    c = chat_on(base, size, **recipe)
    if saved:
        unaccumulated(c, recorded_rows)
    c.published.update({"steps": recipe["steps"], "rate": recipe["peak_lr"]} | published)
    return c


def pretrain_on(size: str, preset: str) -> ConfigDict:
    """Returns the study's pretraining recipe for a full size: 60,000 updates at 3e-4, scaled with the preset."""
    scale = scale_of(preset)
    c = defaults("pretrain", size if scale == "full" else scale)
    c.model.generation, c.model.attention_bias = SIZES[size].generation, SIZES[size].attention_bias
    if scale == "full":
        c.data.sources = ("attack", "capec", "cwe", "cti", "cve", "embedded")
        c.data.seq_len = 1024
        c.model.dropout = 0.1
        c.steps = 60_000
        c.optim.warmup_steps = 2000
        c.eval_every = c.save_every = 1000
        return c
    c.data.sources = ("attack", "capec", "cwe", "embedded")
    c.model.dropout = 0.0
    if scale == "mini":
        c.data.seq_len = 512
        c.steps = 2000
        c.optim.peak_lr = 1e-3
        c.optim.warmup_steps = 100
        c.eval_every = c.save_every = 200
    if scale == "nano":
        c.data.seq_len = 256
        c.steps = 100
        c.batch_size = c.micro_batch_size = 8
        c.optim.peak_lr = 3e-3  # a small model with few updates needs a higher rate
        c.optim.warmup_steps = 10
        c.data.validation_records = 64
        c.log_every = 5
        c.eval_every = c.save_every = 50
    return c


def chat_on(
    base: ModuleType, preset: str, *, steps: int, peak_lr: float, warmup_steps: int = 100, **multipliers: float
) -> ConfigDict:
    """Returns a chat recipe of the study on the base that `configs/<base>.py` trains, scaled with the preset.

    The study's update was to be 32 conversations, most of them far shorter than a row. Here it is 8 packed rows, which
    hold 40 to 60; `--plan` shows how many.
    """
    scale = scale_of(preset)
    c = defaults("chat", scale if scale != "full" else "small36m")
    c.base = base.get_config(preset)
    c.base.name, c.base.preset = base.__name__.rpartition(".")[2], preset
    c.model = ConfigDict(c.base.model.to_dict() | {"dropout": 0.0})
    c.data.sources = c.base.data.sources
    c.data.mixture.update(**multipliers)
    c.steps = steps
    c.batch_size = c.micro_batch_size = 8
    c.optim.peak_lr = peak_lr
    c.optim.warmup_steps = warmup_steps
    if scale != "full":
        # At the study's rates a small model changes too little in few updates; the ratios between recipes stay.
        c.optim.peak_lr = 20 * peak_lr
    if scale == "mini":
        c.steps = steps // 5
        c.optim.warmup_steps = warmup_steps // 5
    if scale == "nano":
        c.steps = max(1, steps // 50)
        c.optim.warmup_steps = 4
        c.data.validation_records = 32
        c.log_every = 2
        c.eval_every = c.save_every = max(1, c.steps // 2)
    return c
