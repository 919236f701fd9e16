"""Every key of a config, with its default and its meaning. A recipe changes only what it is about."""

from types import ModuleType

from ml_collections import ConfigDict

from ghost_jax.config.validate import BASE_DATASETS, CHAT_DATASETS, QA_SOURCES
from ghost_jax.core.errors import UsageError, did_you_mean
from ghost_jax.model.config import SIZES

PRESETS = ("nano", "mini")  # sizes for minutes and for hours on a laptop
SAVED = "saved"  # beside a size, where a recipe has it: the run as it was recorded, not as in the study's table


def defaults(stage: str, size: str) -> ConfigDict:
    """Returns a complete config of stage "pretrain" or "chat" for a named model size."""
    c = ConfigDict()
    c.name = c.preset = c.spec = ""  # filled in from the command line
    c.stage = stage
    c.seed = 0  # parameters, order of the data, dropout
    c.steps = 1000  # updates
    c.batch_size = 32  # global: sequences an update, over all devices and micro-batches
    c.micro_batch_size = 8  # most sequences a device computes at once; must divide its share of batch_size
    c.model = ConfigDict(SIZES[size].record())
    c.model.dtype = "auto"  # or "float32", "bfloat16": of activations and of products' factors; auto is the faster here
    c.model.attention = "auto"  # the platform's kernel where it can be used; or "blocks", "cudnn", "splash"
    c.loss_norm = "token_mean"  # what a batch's loss is a mean over: supervised tokens, or records ("record_mean")
    # The row of the study's table that the config rebuilds; 0 where it gives no figure
    c.published = ConfigDict({"run": "", "steps": 0, "rate": 0.0, "val_loss": 0.0, "accuracy": 0.0, "outcome": ""})

    c.optim = ConfigDict()
    c.optim.name = "adamw"  # or "muon": Muon for matrices of blocks, AdamW for the rest; both take the same rates
    c.optim.schedule = "cosine"  # or "wsd", "constant", "linear"; all after a linear warm-up
    c.optim.decay_share = 0.2  # of all updates, in which "wsd" decays
    c.optim.peak_lr = 3e-4
    c.optim.min_lr = 1e-5  # absolute, reached at the last update
    c.optim.warmup_steps = 100
    c.optim.b1 = 0.9
    c.optim.b2 = 0.95
    c.optim.weight_decay = 0.1  # on matrices only
    c.optim.clip_norm = 1.0  # 0: gradients are not clipped

    c.data = ConfigDict()
    c.data.sources = ("attack", "capec", "cwe", "embedded")  # names in ghost_jax/data/sources, or paths
    c.data.seq_len = 512  # tokens a row
    # dataset -> multiplier = record repetition
    c.data.mixture = ConfigDict(dict.fromkeys(BASE_DATASETS, 0.0) | {"pretrain": 1.0})
    c.data.mixture_schedule = ConfigDict()  # "1500": {"qa": 0.0}: multipliers that change with update 1500
    c.data.packing = False  # several conversations in a row, none seeing another
    c.data.truncation = "crop"  # a conversation longer than a row loses its beginning; "drop" leaves it out
    c.data.validation_records = 100_000  # most records of a dataset in its validation loss
    c.data.seed = 0  # which facts are asked; apart from `seed`, so that seeds share their data

    # -1: the devices that are left; as `replica`, copies of the model over the network, the number of TPU slices
    c.mesh = ConfigDict({"replica": -1, "data": -1, "fsdp": 1, "tensor": 1})

    c.log_every = 10  # updates between lines of metrics.jsonl
    c.eval_every = 100  # updates between validation losses
    c.save_every = 100  # updates between checkpoints
    c.keep = 2  # checkpoints kept
    c.keep_best = ""  # a metric of the validation, e.g. "val_loss", whose best checkpoint is kept beside them
    # After so many evaluations in a row, each with a higher loss, the run stops or warns.
    c.divergence = ConfigDict({"evaluations": 3, "stop": False})
    c.log = ConfigDict({"wandb": "", "trace_at": 0})  # project; update to profile
    c.evals = ConfigDict()  # evaluation of evals/tasks -> its options, run at the end

    if stage == "chat":
        _add_chat_keys(c)
    return c


def _add_chat_keys(c: ConfigDict) -> None:
    """Adds the keys that the chat stage alone has."""
    c.data.mixture = ConfigDict(dict.fromkeys(CHAT_DATASETS, 0.0))
    c.data.chats = ConfigDict()  # name -> path: files of conversations, datasets of the mixture under these names
    c.data.questions = ConfigDict()  # name -> path: files of multiple-choice questions, a part of which is held out
    c.data.question_group = ""  # the column or key of those whose values are never on both sides; "": url, options
    # With rank 0 every parameter is trained. Else only adapters to the kernels in whose names `targets` is found, and
    # the rows of the new tokens.
    c.lora = ConfigDict({"rank": 0, "alpha": 16.0, "targets": "kernel"})
    c.init_tokens = "mean"  # how the new rows of the embedding start: "mean" of the old ones or "random"
    # Weights of the objectives: masked language-model loss, cross-entropy over the option letters, softmax over
    # the log-probabilities of the options' texts (of the datasets "rank", "fact_rank" and "read").
    c.objective = ConfigDict({"lm": 1.0, "letter": 0.0, "ranking": 0.0})
    c.data.packing = True
    c.data.layout = "classic"  # of multiple choice; names in ghost_jax/text/mcq_format.py
    c.data.cot = ConfigDict({"teacher": "offline", "model": ""})  # or an OpenAI-compatible URL and its model
    c.data.qa_sources = QA_SOURCES  # as documents name them; absent ones are skipped
    c.data.qa_per_source = 3500  # about how many documents, and how many facts, of a source become questions
    c.evals.ctibench = ConfigDict({"batch_size": 16, "orders": "cyclic"})
    # Letters of some of the run's held-out questions while it trains, every so many updates; 0: never.
    c.online_probe = ConfigDict({"every": 0, "questions": 64})


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
