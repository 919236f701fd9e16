"""ghost_jax/config/load.py: every config of the house loads, and a wrong word on the command line gets a hint."""

import argparse
import ast
import json
import shutil
import sys
import types
from pathlib import Path

import pytest
from ml_collections import ConfigDict

from configs import common
from evals.analysis import recorded
from ghost_jax.config import load as config_lib
from ghost_jax.core.errors import BAD_USAGE, UsageError, UserError
from ghost_jax.model.config import ModelConfig
from ghost_jax.reporting import records as report_records
from ghost_jax.runs import run_dir

CONFIGS = Path(__file__).parent.parent / "configs"
CHAT = str(CONFIGS / "chat_v5.py")
FILES = sorted(path for path in CONFIGS.glob("*.py") if path.name not in ("common.py", "__init__.py"))


def parse(*argv: str) -> tuple[ConfigDict, argparse.Namespace]:
    return config_lib.parse(argparse.ArgumentParser(), list(argv))


def refusal(*argv: str) -> str:
    with pytest.raises(UsageError) as caught:
        parse(*argv)
    assert caught.value.exit_code == BAD_USAGE
    return str(caught.value)


@pytest.fixture
def written(tmp_path):
    """Writes a config file of its own and returns its path."""

    def write(content: str) -> str:
        path = tmp_path / "configs" / "mine.py"
        path.parent.mkdir(exist_ok=True)
        path.write_text(content, encoding="utf-8")
        return str(path)

    return write


# ---- The configs of the house ----


# The rows of the study's table: steps, rate, what stands for its score, and the validation loss where it names one.
ROWS = {
    "chat_v2": ("1,500", "5e-5", "19.0%", ""),
    "chat_v3": ("1,500", "5e-5", "36.9%", ""),
    "chat_v4_raft": ("1,500", "5e-5", "25.0%", ""),
    "chat_v05": ("1,500", "5e-5", "32.5%", ""),
    "chat_long": ("4,000", "5e-5", "17.1%", ""),
    "chat_recovered": ("1,500", "3e-5", "30.8%", "2.808"),
    "chat_v4_failed": ("300", "2e-4", "killed", ""),
    "chat_v5": ("2,000", "5e-5", "34.8%", "2.990"),
}
BASES = {
    "pretrain_v04": 45_174_784,
    "pretrain_v05": 35_670_528,
    "pretrain_ours": 35_670_528,
    "pretrain_facts": 35_670_528,
}
BASES["pretrain_base350m"] = 341_099_520
RECORDED = ("chat_v3", "chat_v05", "chat_long", "chat_recovered", "chat_v4_failed", "chat_v5")  # what :saved runs
SIZES = ("", *common.PRESETS)


def read(name: str, preset: str = "") -> ConfigDict:
    return parse(f"--config={CONFIGS / name}.py" + (f":{preset}" if preset else ""))[0]


def docstring(name: str) -> str:
    return ast.get_docstring(ast.parse((CONFIGS / f"{name}.py").read_text(encoding="utf-8")))


def test_every_config_that_is_asked_for_is_there():
    assert {path.stem for path in FILES} == {
        *ROWS,
        *BASES,
        "chat_ours",
        "chat_base350m",
        "chat_reader",
        "chat_facts",
        "pretrain_exposure",
    }


@pytest.mark.parametrize("preset", SIZES)
@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_every_config_loads_at_each_size(path, preset):
    config = read(path.stem, preset)
    spec = f"configs/{path.name}:{preset}".rstrip(":")  # records have no folder of the user
    assert (config.name, config.preset, config.spec) == (path.stem, preset, spec)
    assert config.is_locked
    if config.stage == "chat":
        assert (config.base.stage, config.base.preset) == ("pretrain", preset)
        assert config.base.name in BASES


@pytest.mark.parametrize("name", [path.stem for path in FILES])
def test_every_config_tells_its_commands(name):
    told = docstring(name)
    assert f"python -m ghost_jax.train --config=configs/{name}.py" in told
    assert (f"configs/{name}.py:saved" in told) == (name in RECORDED)


@pytest.mark.parametrize("name", ROWS)
def test_every_recipe_of_the_study_tells_its_row_and_carries_it(name):
    steps, rate, score, loss = ROWS[name]
    row = docstring(name).partition("The table's row: ")[2].partition("\n")[0]
    assert all(cell in row for cell in ROWS[name]), row
    published = read(name).published
    assert f"{published.steps:,}" == steps
    assert published.rate == float(rate)
    assert published.run.startswith("chat")
    assert (f"{published.val_loss:.3f}" if published.val_loss else "") == loss
    assert (f"{100 * published.accuracy:.1f}%" if published.accuracy else published.outcome[-len(score) :]) == score


@pytest.mark.parametrize("name", ROWS)
def test_a_recipe_of_the_study_runs_its_row_as_written(name):
    config = read(name)
    steps = 2000 if name == "chat_v4_failed" else config.published.steps  # planned; it was killed at 300
    assert (config.steps, config.optim.peak_lr, config.loss_norm) == (steps, config.published.rate, "token_mean")
    assert config.divergence.stop == (name == "chat_v4_failed")


@pytest.mark.parametrize("name", BASES)
def test_the_full_bases_have_the_documented_sizes(name):
    config = read(name)
    assert ModelConfig(**config.model).parameters() == BASES[name]
    documented = "45.17M" if name == "pretrain_v04" else f"{BASES[name]:,}"
    assert documented in docstring(name)


def test_the_presets_of_a_base_keep_its_kind():
    for preset in common.PRESETS:
        assert read("pretrain_v04", preset).model.generation == "v04"
        large = read("chat_base350m", preset).model
        assert (large.attention_bias, large.remat, large.scan) == (False, True, True)


# ---- Presets together ----


@pytest.mark.parametrize("preset", SIZES)
@pytest.mark.parametrize("name", RECORDED)
def test_a_recorded_run_can_be_had_at_each_size(name, preset):
    config = read(name, f"{preset},saved".strip(","))
    assert config.base.preset == preset, "the base is the same one"
    assert (config.data.packing, config.loss_norm) == (False, "record_mean")
    assert config.batch_size == config.micro_batch_size == (8 if name == "chat_v3" else 4)
    assert config.published == read(name).published


def test_the_canonical_run_as_it_was_recorded():
    config = read("chat_v3", "saved")
    assert (config.steps, config.optim.peak_lr, config.optim.warmup_steps) == (1800, 3e-5, 120)
    assert (config.data.seq_len, config.data.mixture.mcq, config.data.mixture.qa) == (1024, 2.0, 1.0)
    small, plain = read("chat_v3", "saved,nano"), read("chat_v3", "nano")
    assert (small.steps, small.model) == (36, plain.model)
    assert small.optim.peak_lr == pytest.approx(0.6 * plain.optim.peak_lr)


@pytest.mark.parametrize("name", sorted({path.stem for path in FILES} - set(RECORDED)))
def test_what_is_not_known_of_a_recorded_run_is_refused(name):
    for preset in ("saved", "nano,saved"):
        assert "has no variant saved" in refusal(f"--config={CONFIGS / name}.py:{preset}")


def test_two_sizes_at_once_are_refused():
    assert "nano,mini names 2 sizes" in refusal(f"--config={CHAT}:nano,mini")
    assert 'no preset savd. Did you mean "saved"?' in refusal(f"--config={CHAT}:nano,savd")


# ---- Our own recipe ----


@pytest.mark.parametrize("preset", SIZES)
@pytest.mark.parametrize("name", ["chat_ours", "chat_base350m"])
def test_our_recipe_asks_only_what_was_studied_and_no_bare_letters(name, preset):
    config = read(name, preset)
    assert config.base.data.mixture.facts > 0
    assert {dataset for dataset, m in config.data.mixture.items() if m} == {"qa", "fact_mcq", "raft", "small_talk"}
    assert (config.data.layout, config.init_tokens) == ("letter_after", "mean")
    assert not config.published.run


def test_the_larger_base_sees_as_many_tokens_as_ours():
    ours, large = read("pretrain_ours"), read("pretrain_base350m")
    assert large.data == ours.data
    assert large.steps * large.batch_size == ours.steps * ours.batch_size
    assert read("chat_base350m").mesh == large.mesh


# ---- Overrides ----


@pytest.mark.parametrize(
    ("key", "text", "value"),
    [
        ("optim.peak_lr", "1e-4", 1e-4),
        ("optim.peak_lr", "1", 1.0),
        ("steps", "7", 7),
        ("steps", "1_000", 1000),
        ("mesh.data", "-1", -1),
        ("model.attention_bias", "false", False),
        ("model.attention_bias", "True", True),
        ("model.attention_bias", "0", False),
        ("data.sources", "attack,cwe", ("attack", "cwe")),
        ("data.sources", "(attack, cwe)", ("attack", "cwe")),
        ("data.sources", "embedded", ("embedded",)),
        ("model.dtype", "bfloat16", "bfloat16"),
        ("data.mixture.mcq", "0", 0.0),
        ("base.steps", "3", 3),
        ("evals.ctibench.orders", "published", "published"),
    ],
)
def test_a_value_keeps_its_type(key, text, value):
    found = config = config_lib.load(f"{CHAT}:nano")
    config_lib.override(config, key, text)
    for part in key.split("."):
        found = found[part]
    assert (found, type(found)) == (value, type(value))


@pytest.mark.parametrize(
    ("word", "hint"),
    [
        ("optim.peak_rl=1", 'Did you mean "optim.peak_lr"?'),
        ("stepz=1", 'Did you mean "steps"?'),
        ("peak_lr=1", 'Did you mean "optim.peak_lr"?'),  # the group was forgotten
        ("data.mixture.mqc=1", 'Did you mean "data.mixture.mcq"?'),
        ("xyzzy=1", "Known: batch_size, eval_every"),
        ("steps.more=1", "has no key steps.more"),
        ("=1", "has no key"),
    ],
)
def test_an_unknown_key_is_answered_with_the_nearest(word, hint):
    assert hint in refusal(f"--config={CHAT}", f"--config.{word}")


@pytest.mark.parametrize(
    ("word", "part"),
    [
        ("steps=many", "the value is a int"),
        ("steps=1.5", "the value is a int"),
        ("steps=True", "the value is a int"),
        ("steps=", "the value is a int"),
        ("optim.peak_lr=fast", "by default 5e-05"),
        ("optim.peak_lr=(1,)", "the value is a float"),
        ("model.attention_bias=maybe", "the value is a bool"),
        ("optim=1", "is a group; set one of optim.b1, optim.b2"),
        ("steps", "has no value: write --config.steps=VALUE"),
        ("data.mixture_schedule=1", "is a group; set it in a config file"),
    ],
)
def test_a_value_that_does_not_fit_is_refused(word, part):
    assert part in refusal(f"--config={CHAT}", f"--config.{word}")


@pytest.mark.parametrize(
    ("key", "text", "value"),
    [
        ("steps", "20", 20),
        ("model.remat", "True", True),
        ("mesh.data", "-1", -1),
        ("data.sources", "attack,cwe", ("attack", "cwe")),
        ("log.wandb", "a=b", "a=b"),
        ("base.optim.peak_lr", "1e-4", 1e-4),
    ],
)
def test_a_value_may_stand_behind_its_key_or_a_blank(tmp_path, key, text, value):
    here = ["--config", f"{CHAT}:nano", "--data_dir", str(tmp_path)]
    for words in ([f"--config.{key}={text}"], [f"--config.{key}", text]):
        for argv in ([*here, *words], [*words, *here]):
            found, flags = parse(*argv)
            for part in key.split("."):
                found = found[part]
            assert (found, str(flags.data_dir)) == (value, str(tmp_path))


def test_a_key_without_a_value_is_named():
    for behind in ([], ["--data_dir=."], ["--config.steps=3"], ["-n", "2"]):
        assert "--config.model.remat has no value" in refusal(f"--config={CHAT}", "--config.model.remat", *behind)


def test_a_value_may_begin_with_a_dash():
    assert "optim.clip_norm is -1.0" in refusal(f"--config={CHAT}", "--config.optim.clip_norm", "-1")
    assert parse(f"--config={CHAT}", "--config.optim.clip_norm", "-0")[0].optim.clip_norm == 0


def test_a_url_with_a_password_is_refused_and_not_repeated():
    said = refusal(f"--config={CHAT}", "--config.data.cot.teacher=http://me:secret@host/v1")
    assert "data.cot.teacher" in said
    assert "secret" not in said


# ---- Files ----


def test_an_unknown_preset_is_answered_with_the_nearest():
    assert 'no preset nanno. Did you mean "nano"?' in refusal(f"--config={CHAT}:nanno")


def test_a_missing_file_is_named(tmp_path):
    assert "no config file" in refusal(f"--config={tmp_path}/gone.py")
    assert "no config file" in refusal(f"--config={tmp_path}")


def test_a_path_may_hold_colons(tmp_path):
    folder = tmp_path / "a:b" / "configs"
    folder.mkdir(parents=True)
    path = shutil.copy(CHAT, folder / "mine.py")
    for preset in ("", "nano", "nano,saved"):
        config, _ = parse(f"--config={path}{':' * bool(preset)}{preset}")
        assert (config.name, config.preset) == ("mine", preset)
    assert 'Did you mean "nano"?' in refusal(f"--config={path}:nanno")


@pytest.mark.parametrize("folder", ["", "tests/bench"])
def test_our_recipes_are_found_from_any_folder(tmp_path, monkeypatch, folder):
    monkeypatch.chdir(CONFIGS.parent / folder if folder else tmp_path)
    assert parse("--config=configs/chat_v5.py:nano")[0].spec == "configs/chat_v5.py:nano"
    said = refusal("--config=configs/nope.py")
    assert str(Path.cwd()) in said
    assert str(CONFIGS.parent) in said


def test_the_file_of_the_folder_that_one_is_in_wins(tmp_path, monkeypatch, written):
    path = Path(written("from configs import chat_v5\nget_config = chat_v5.get_config\n"))
    path.rename(path.with_name("chat_v3.py"))
    monkeypatch.chdir(tmp_path)
    assert parse("--config=configs/chat_v3.py:nano")[0].published.run == "chat-v5"


def test_a_config_imports_its_neighbours_and_ours_and_no_other_package_of_that_name(tmp_path, monkeypatch, written):
    """One that was imported before stays what it was."""
    other = tmp_path / "other" / "configs" / "__init__.py"
    other.parent.mkdir(parents=True)
    other.write_text("WHOSE = 'another'\n")
    monkeypatch.syspath_prepend(other.parents[1])
    theirs = types.ModuleType("configs")
    monkeypatch.setitem(sys.modules, "configs", theirs)
    path = written("from configs import beside, chat_v5\nget_config = beside.changed(chat_v5)\n")
    Path(path).with_name("beside.py").write_text(
        "def changed(recipe):\n"
        "    def get_config(preset):\n"
        "        from configs import common\n"
        "        c = recipe.get_config(preset)\n"
        "        c.seed = len(common.PRESETS)\n"
        "        return c\n"
        "    return get_config\n"
    )
    assert parse(f"--config={path}:nano")[0].seed == 2
    assert sys.modules["configs"] is theirs
    assert "configs.beside" not in sys.modules


@pytest.mark.parametrize(
    ("content", "parts"),
    [
        ("", ("is no config file", "must define get_config")),
        ("def get_config(preset):\n    return {}", ("is no config file", "ConfigDict")),
        ("def get_config(preset):\n    return None", ("is no config file", "ConfigDict")),
        ("def get_config(preset):\n    return preset.nothing", ("could not be read", "nothing", "line 2")),
        ("a: b: c", ("could not be read", "SyntaxError")),
        ("def get_config(:", ("could not be read", "SyntaxError")),
        ("import no_such_module", ("could not be read", "no_such_module")),
        ("def get_config(preset):\n    return 1 / 0", ("could not be read", "ZeroDivisionError")),
        ("def get_config():\n    return {}", ("could not be read", "TypeError")),
    ],
)
def test_a_file_that_is_no_config_is_named(written, content, parts):
    message = refusal(f"--config={written(content)}")
    for part in ("mine.py", *parts):
        assert part in message


def test_a_config_of_ones_own_may_use_the_house_defaults(written):
    path = written(
        "from configs import common\ndef get_config(preset=''):\n"
        "    c = common.defaults('pretrain', 'nano')\n    c.steps = 3\n    return c\n"
    )
    config, _ = parse(f"--config={path}")
    assert (config.name, config.steps) == ("mine", 3)


# ---- Contradictions ----


@pytest.mark.parametrize(
    ("words", "parts"),
    [
        (["batch_size=0"], ("batch_size is 0",)),
        (["micro_batch_size=-4"], ("micro_batch_size is -4",)),
        (["steps=0"], ("steps",)),
        (["log_every=0"], ("log_every",)),
        (["eval_every=0"], ("eval_every",)),
        (["save_every=0"], ("save_every",)),
        (["keep=0"], ("keep",)),
        (["data.seq_len=0"], ("data.seq_len",)),
        (["data.seq_len=4096"], ("data.seq_len (4096)", "model.context (1024)")),
        (["model.dtype=float16"], ("float16", "bfloat16")),
        (["model.generation=v06"], ("v06", "v05")),
        (["model.heads=3", "base.model.heads=3"], ("model.heads", "3")),
        (["model.heads=128", "base.model.heads=128"], ("model.heads", "128")),
        (["base.steps=0"], ("steps",)),
        (["data.truncation=cut"], ("cut", "use one of crop, drop")),
        (["data.layout=clozed"], ("clozed", "classic", "options_only")),
        (["optim.schedule=cosin"], ("cosin", "use one of cosine, wsd, constant, linear")),
        (["loss_norm=mean"], ("loss_norm is mean", "token_mean, record_mean")),
        (["init_tokens=zero"], ("zero", "mean, random")),
        (["divergence.evaluations=1"], ("divergence.evaluations is 1",)),
        (["optim.peak_lr=1e-3", "optim.min_lr=-1e-6"], ("optim.min_lr is -1e-06",)),
        (["optim.peak_lr=1e-3", "optim.min_lr=2e-3"], ("optim.min_lr is 0.002", "optim.peak_lr (0.001)")),
        (["base.optim.min_lr=1"], ("base.optim.min_lr is 1.0",)),
        (["optim.decay_share=0"], ("optim.decay_share is 0.0",)),
        (["optim.decay_share=1.5"], ("optim.decay_share is 1.5",)),
        (["mesh.fsdp=-1"], ("mesh", "-1")),
        (["log.trace_at=41"], ("log.trace_at is 41", "40")),
        (["online_probe.every=41"], ("online_probe.every is 41", "40")),
        (["keep_best=val_loss_read"], ("keep_best is val_loss_read", "val_loss_shared, val_loss_cot")),
        (["base.keep_best=val_loss_shared"], ("base.keep_best is val_loss_shared", "use one of val_loss, or")),
        (["data.cot.teacher=ftp://host"], ("data.cot.teacher",)),
        (["data.cot.teacher=http://host/v1"], ("data.cot.model is empty",)),
        (["objective.lm=0"], ("The objective is empty",)),
        (["objective.letter=-1"], ("objective.letter is -1.0",)),
        (["objective.letter=1", "data.layout=cloze"], ("data.layout=cloze",)),
        (["objective.letter=1", "data.mixture.mcq=0", "data.mixture.cot=0"], ("needs a dataset with letters",)),
        (["objective.ranking=1"], ("--config.data.mixture.rank=1",)),
        (["data.mixture.mcq=-1"], ("data.mixture.mcq is -1.0",)),
        ([f"data.mixture.{name}=0" for name in ("qa", "mcq", "cot", "small_talk")], ("from update 0 on is empty",)),
        (["model.width=256"], ("differ in model.width", "--config.base.model.width")),
        (["model.layers=2", "model.vocab_size=500"], ("model.layers, model.vocab_size",)),
    ],
    ids=lambda value: value[0],
)
def test_values_that_contradict_each_other_are_refused(words, parts):
    message = refusal(f"--config={CHAT}:nano", *(f"--config.{word}" for word in words))
    for part in parts:
        assert part in message


def test_a_chat_model_and_its_base_may_be_changed_together():
    words = ["model.width=64", "base.model.width=64", "model.dropout=0.1", "model.dtype=bfloat16"]
    config, _ = parse(f"--config={CHAT}:nano", *(f"--config.{word}" for word in words))
    assert config.model.width == config.base.model.width == 64


# ---- Weights that change ----


SCHEDULE = """
from configs import chat_v5
def get_config(preset=''):
    c = chat_v5.get_config(preset)
    with c.unlocked():
        c.data.mixture_schedule = {SCHEDULE}
    return c
"""


def test_weights_may_change_with_an_update(written):
    path = written(SCHEDULE.replace("{SCHEDULE}", "{'10': dict(mcq=0), '25': dict(qa=2)}"))
    config, _ = parse(f"--config={path}:nano")
    by_start = config_lib.mixtures(config)
    assert list(by_start) == [0, 10, 25]
    assert [by_start[start]["mcq"] for start in by_start] == [5.0, 0.0, 0.0]
    assert [by_start[start]["qa"] for start in by_start] == [1.0, 1.0, 2.0]


@pytest.mark.parametrize(
    ("schedule", "part"),
    [
        ("{'40': dict(qa=2)}", "has the key 40"),  # the run has 40 updates, so none is left
        ("{'0': dict(qa=2)}", "has the key 0"),
        ("{'soon': dict(qa=2)}", "has the key soon"),
        ("{'10': dict(mqc=2)}", 'Did you mean "mcq"?'),
        ("{'10': dict(qa=0, mcq=0, cot=0, small_talk=0)}", "from update 10 on is empty"),
    ],
)
def test_changes_that_cannot_be_are_refused(written, schedule, part):
    assert part in refusal(f"--config={written(SCHEDULE.replace('{SCHEDULE}', schedule))}:nano")


# ---- The run directory's copy ----


def test_the_json_of_a_config_gives_it_back():
    config, _ = parse(f"--config={CHAT}:nano", "--config.optim.peak_lr=1e-4")
    again = config_lib.from_json(config_lib.to_json(config))
    assert again.to_dict() == config.to_dict()
    assert config_lib.to_json(again) == config_lib.to_json(config)


@pytest.mark.parametrize("reader", ["resume", "--base", "report", "compare"])
@pytest.mark.parametrize(
    ("group", "now", "before"),
    [
        ("model", "mlp_dim", "hidden"),
        ("optim", "min_lr", "floor_lr"),
        ("data", "mixture_schedule", "later"),
        ("data", "truncation", "overlong"),
        ("", "online_probe", "look"),
        ("", "divergence", "watch"),
    ],
)
def test_a_run_of_an_earlier_version_is_refused(tmp_path, reader, group, now, before):
    config, _ = parse(f"--config={CHAT}:nano")
    old = json.loads(config_lib.to_json(config))
    keys = old[group] if group else old
    keys[before] = keys.pop(now)
    (tmp_path / "config.json").write_text(json.dumps(old))
    (tmp_path / "evals").mkdir()
    (tmp_path / "evals" / "ctibench.json").write_text("{}")
    read = {
        "resume": lambda: run_dir.open_run(tmp_path, config),
        "--base": lambda: config_lib.stand_on(config, tmp_path),
        "report": lambda: report_records.read_run(tmp_path),
        "compare": lambda: recorded.read_report(tmp_path, "ctibench"),
    }
    with pytest.raises(UserError) as caught:
        read[reader]()
    assert str(caught.value) == (
        f"{tmp_path}/config.json is the config of a run of an earlier version: it has {group and group + '.'}{before}, "
        "which this version of ghost_jax does not read. Train the run again, or use the version that environment.json "
        "beside it names."
    )
