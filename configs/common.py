"""Every key of a config, with its default and what it means. A recipe changes what it is about, and nothing else."""

import dataclasses

from ml_collections import ConfigDict

from ghost_jax.errors import UsageError, did_you_mean
from ghost_jax.model.sizes import SIZES


def defaults(stage: str, size: str) -> ConfigDict:
    """Returns a complete config of stage "pretrain" or "chat" for a named model size."""
    c = ConfigDict()
    c.name = c.preset = c.spec = ""  # filled in from the command line
    c.stage = stage
    c.seed = 0  # parameters, order of the data, dropout
    c.steps = 1000  # updates
    c.batch_size = 32  # global: sequences an update, over all devices and micro-batches
    c.micro_batch_size = 8  # sequences in memory at once, over all devices; divides batch_size
    c.model = ConfigDict(dataclasses.asdict(SIZES[size]))

    c.optim = ConfigDict()
    c.optim.peak_lr = 3e-4
    c.optim.floor_lr = 1e-5  # absolute, reached at the last update
    c.optim.warmup_steps = 100
    c.optim.b1 = 0.9
    c.optim.b2 = 0.95
    c.optim.weight_decay = 0.1  # on matrices only
    c.optim.clip_norm = 1.0

    c.data = ConfigDict()
    c.data.sources = ("attack", "capec", "cwe", "embedded")  # names in ghost_jax/data/sources
    c.data.seq_len = 512  # tokens a row; longer conversations lose their beginning
    c.data.validation_records = 100_000  # most records of a dataset whose loss is taken
    c.data.seed = 0  # which facts are asked; apart from `seed`, so that seeds share their data

    c.mesh = ConfigDict({"data": -1, "fsdp": 1, "tensor": 1})  # -1: the devices that are left

    c.log_every = 10  # updates between lines of metrics.jsonl
    c.eval_every = 100  # updates between validation losses
    c.save_every = 100  # updates between checkpoints
    c.keep = 2  # checkpoints kept
    c.evals = ConfigDict()  # evals/<name>.py with its options, run at the end

    if stage == "chat":
        c.data.mixture = ConfigDict(
            {"qa": 0.0, "mcq": 0.0, "cot": 0.0, "small_talk": 0.0}
        )  # multiplier = record repetition
        c.data.qa_sources = ("attack", "capec", "cwe", "cve_trickest", "embedded")  # as documents call them
        c.data.qa_per_source = 3500  # about as many documents, and as many facts, are asked of one source
        c.evals.ctibench = ConfigDict({"batch_size": 64, "orders": "cyclic"})
    return c


def pick(preset: str, **presets) -> str:
    """Returns the preset's name, "full" where none was given. Raises UsageError for one that is not in `presets`."""
    if preset and preset not in presets:
        raise UsageError(f"There is no preset {preset}.{did_you_mean(preset, list(presets))}")
    return preset or "full"
