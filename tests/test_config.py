"""ghost_jax/config: every config loads as recorded; wrong keys, values and files are refused with their names."""

import argparse
import dataclasses
import json
import math
import shutil
from pathlib import Path

import pytest
from ml_collections import ConfigDict

from configs import common
from evals.analysis import recorded
from evals.items.answers import ORDERS
from ghost_jax.config import load as config_lib
from ghost_jax.config.keys import DOMAINS, OPTIONS, integer, real, several_of
from ghost_jax.config.load import leaves
from ghost_jax.core.errors import BAD_USAGE, UsageError, UserError
from ghost_jax.model.config import ModelConfig
from ghost_jax.runs import run_dir, run_record
from ghost_jax.train import stages_of
from ghost_jax.training.loss import OBJECTIVES
from ghost_jax.training.optimizer import OPTIMIZERS, SCHEDULES
from tests.conftest import ROOT

CONFIGS = ROOT / "configs"
CHAT = f"{CONFIGS / 'chat_v5.py'}"
NAMES = sorted(path.stem for path in CONFIGS.glob("*.py") if path.name not in ("common.py", "__init__.py"))
SIZES = ("", *common.PRESETS)
GOLDEN = ROOT / "tests" / "recipes.json"  # what each config sets, by config and preset


def parse(*argv: str) -> tuple[ConfigDict, argparse.Namespace]:
    return config_lib.parse(argparse.ArgumentParser(), list(argv))


def read(name: str, preset: str = "") -> ConfigDict:
    return parse(f"--config={CONFIGS / name}.py" + (f":{preset}" if preset else ""))[0]


def refusal(*argv: str) -> str:
    with pytest.raises(UsageError) as caught:
        parse(*argv)
    assert caught.value.exit_code == BAD_USAGE
    return str(caught.value)


def write_own(folder: Path, content: str) -> None:
    (folder / "configs").mkdir()
    (folder / "configs" / "mine.py").write_text(content, encoding="utf-8")


def what_is_set(config: ConfigDict) -> dict:
    """Returns the keys of a config, its base included, that differ from the defaults of its stage."""
    found, defaults = (
        json.loads(json.dumps(dict(leaves(each)), default=dict))
        for each in (config, common.defaults(config.stage, "nano"))
    )
    named = {key: value for key, value in found.items() if value != defaults.get(key) and key not in ("name", "spec")}
    named |= {f"-{key}": None for key in defaults.keys() - found.keys()}
    return named | ({"base": what_is_set(config.base)} if "base" in config else {})


def recipes() -> dict[str, dict | None]:
    """Returns what each config sets at each preset; None for a recorded run that is not known."""
    found = {}
    for spec in (f"{name}:{preset}" for name in NAMES for preset in (*SIZES, "saved", "nano,saved", "mini,saved")):
        name, _, preset = spec.partition(":")
        try:
            found[spec] = what_is_set(read(name, preset))
        except UsageError:
            found[spec] = None
    return found


def test_every_config_at_every_preset_is_as_recorded():
    """After a deliberate change, `python -m tests.test_config` rewrites the record."""
    golden = json.loads(GOLDEN.read_text(encoding="utf-8"))
    found = recipes()
    assert found.keys() == golden.keys()
    assert {name: found[name] for name in found if found[name] != golden[name]} == {}
    assert all(keys is not None or name.endswith("saved") for name, keys in golden.items())


@pytest.mark.parametrize(
    ("key", "text", "value"),
    [
        ("optim.peak_lr", "1e-4", 1e-4),
        ("model.remat", "True", True),
        ("data.packing", "0", False),
        ("base.steps", "3", 3),
        ("data.sources", "attack,cwe", ("attack", "cwe")),
        ("log.wandb", "a=b", "a=b"),
    ],
)
def test_a_value_keeps_its_type_and_follows_an_equals_sign_or_a_blank(tmp_path, key, text, value):
    here = ["--config", f"{CHAT}:nano", "--data_dir", str(tmp_path)]
    for words in ([*here, f"--config.{key}={text}"], [f"--config.{key}", text, *here]):
        config, flags = parse(*words)
        for part in key.split("."):
            config = config[part]
        assert (config, type(config), flags.data_dir) == (value, type(value), tmp_path)


@pytest.mark.parametrize(
    ("word", "part"),
    [
        ("optim.peak_rl=1", '"optim.peak_lr"'),
        ("peak_lr=1", '"optim.peak_lr"'),  # the group was forgotten
        ("=1", "has no key"),
        ("steps=many", "int"),
        (f"seed=1{'0' * 5000}", "seed"),
        ("model.attention_bias=maybe", "bool"),
        ("optim=1", "optim.b1, optim.b2"),
        ("data.mixture_schedule=1", "data.mixture_schedule is a group"),
        ("steps", "--config.steps=VALUE"),
    ],
)
def test_an_unknown_key_is_answered_with_the_nearest_and_a_wrong_value_with_its_type(word, part):
    message = refusal(f"--config={CHAT}", f"--config.{word}")
    assert part in message
    assert len(message) < 1000


def test_a_value_may_be_a_negative_number_and_is_never_the_next_flag():
    for behind in ([], ["--data_dir=."], ["--config.steps=3"], ["-n", "2"]):
        assert "--config.model.remat" in refusal(f"--config={CHAT}", "--config.model.remat", *behind)
    assert "optim.clip_norm is -1.0" in refusal(f"--config={CHAT}", "--config.optim.clip_norm", "-1")
    assert parse(f"--config={CHAT}", "--config.optim.clip_norm", "-0")[0].optim.clip_norm == 0


def test_a_missing_file_preset_or_base_is_named(tmp_path):
    assert "gone.py" in refusal(f"--config={tmp_path}/gone.py")
    assert "absent" in refusal(f"--config={CHAT}:nano", f"--base={tmp_path / 'absent'}")
    assert '"nano"' in refusal(f"--config={CHAT}:nanno")
    assert '"saved"' in refusal(f"--config={CHAT}:nano,savd")
    assert "nano,mini" in refusal(f"--config={CHAT}:nano,mini")


def test_our_recipes_are_found_from_any_folder_and_a_file_in_the_current_folder_wins(tmp_path, monkeypatch):
    write_own(tmp_path, "from configs import chat_v5\nget_config = chat_v5.get_config\n")
    monkeypatch.chdir(tmp_path)
    ours = parse("--config=configs/chat_v5.py:nano")[0]
    assert (ours.name, ours.preset, ours.spec) == ("chat_v5", "nano", "configs/chat_v5.py:nano")
    assert ours.is_locked
    message = refusal("--config=configs/nope.py")
    assert str(tmp_path) in message
    assert str(ROOT) in message
    assert parse("--config=configs/mine.py:nano")[0].published.run == "chat-v5"
    shutil.copy("configs/mine.py", "configs/chat_v3.py")
    assert parse("--config=configs/chat_v3.py:nano")[0].published.run == "chat-v5"


@pytest.mark.parametrize(
    ("content", "part"),
    [
        ("", "get_config"),
        ("def get_config(preset):\n    return {}", "ConfigDict"),
        ("def get_config(preset):\n    return preset.nothing", "line 2"),
        ("def get_config(:", "SyntaxError"),
    ],
)
def test_a_file_that_is_no_config_is_named(tmp_path, content, part):
    write_own(tmp_path, content)
    message = refusal(f"--config={tmp_path}/configs/mine.py")
    assert "mine.py" in message
    assert part in message


@pytest.mark.parametrize("reader", ["resume", "--base", "report", "compare"])
def test_a_run_of_an_earlier_version_is_refused(tmp_path, reader):
    config, _ = parse(f"--config={CHAT}:nano")
    (tmp_path / "evals").mkdir()
    (tmp_path / "evals" / "ctibench.json").write_text("{}")
    read = {
        "resume": lambda: run_dir.open_run(tmp_path, config),
        "--base": lambda: config_lib.stand_on(config, tmp_path),
        "report": lambda: run_record.read(tmp_path),
        "compare": lambda: recorded.read_report(tmp_path, "ctibench"),
    }
    old = json.loads(config_lib.to_json(config))
    old["watch"] = old.pop("divergence")
    (tmp_path / "config.json").write_text(json.dumps(old))
    with pytest.raises(UserError, match=rf"{tmp_path}/config\.json .*watch"):
        read[reader]()


def test_every_key_of_every_config_has_a_domain_and_every_domain_a_key():
    found = set()
    for path in sorted((ROOT / "configs").glob("*.py")):
        for preset in ("", "mini", "nano") if path.name not in ("common.py", "__init__.py") else ():
            config = config_lib.load(f"{path}:{preset}")
            for part in [config, config.base] if config.stage == "chat" else [config]:
                found |= dict(leaves(part)).keys()
    assert found == DOMAINS.keys() - OPTIONS.keys()
    fields = {field.name for field in dataclasses.fields(ModelConfig)}
    assert {key.removeprefix("model.") for key in DOMAINS if key.startswith("model.")} == fields


def test_the_table_names_what_there_is():
    assert set(DOMAINS["evals.ctibench.orders"].names) == ORDERS.keys()
    assert set(DOMAINS["optim.schedule"].names) == SCHEDULES.keys()
    assert set(DOMAINS["optim.name"].names) == OPTIMIZERS.keys()
    assert {key.removeprefix("objective.") for key in DOMAINS if key.startswith("objective.")} == set(OBJECTIVES)


@pytest.mark.parametrize(
    ("domain", "inside", "outside"),
    [
        (integer(2, 5, also=-1), (2, 5, -1), (1, 6, -2, 0, 2.0, True, "2", None, math.nan, 10**300)),
        (real(1e30), (0, 1, 0.0, -0.0, 1e-37, 1e30), (True, "1", 10**300, 1e31, 1e-39, -1e-300, -1, math.nan)),
        (real(1, below=True), (0, 0.999), (1, 1 - 1e-9, -0.1)),
        (several_of("a", "b"), (("a",), ("b", "a")), ((), ("a", "a"), ("c",), "a", ["a"])),
        (several_of(), (("my_blog",),), (("",), ("a b",), (3,), ("a,b",))),
        (DOMAINS["seed"], (0, 2**32 - 1), (2**32, -1)),
        (DOMAINS["optim.b1"], (0.0, 0.9), (1.0, -0.1, 0.99999999)),
        (DOMAINS["data.mixture_schedule"], (ConfigDict({"5": {"qa": 0.0}}),), (ConfigDict({"5": {"qa": math.nan}}), 3)),
    ],
)
def test_a_domain_holds_its_ends_and_nothing_beyond(domain, inside, outside):
    assert [value for value in inside if not domain.holds(value)] == []
    assert [value for value in outside if domain.holds(value)] == []


@pytest.mark.parametrize(
    ("words", "parts"),
    [
        (["optim.peak_lr=0"], ("optim.peak_lr is 0.0", str(DOMAINS["optim.peak_lr"]))),
        (["name=a/b"], ("name is a/b", str(DOMAINS["name"]))),
        (["data.seq_len=4096"], ("data.seq_len", "4096", "model.context", "1024")),
        (["model.heads=3", "base.model.heads=3"], ("model.heads (3)",)),
        (["optim.peak_lr=1e-3", "optim.min_lr=2e-3"], ("optim.min_lr is 0.002", "0.001")),
        (["lora.rank=4", "optim.name=muon"], ("optim.name is muon", "lora.rank")),
        (["mesh.fsdp=-1"], ("mesh", "-1")),
        (["log.trace_at=41"], ("log.trace_at is 41", "40")),
        (["objective.lm=0"], ("objective",)),
        (["objective.letter=1", "data.layout=cloze"], ("objective.letter", "data.layout=cloze")),
        (["objective.letter=1", "data.mixture.mcq=0", "data.mixture.cot=0"], ("objective.letter", "fact_mcq")),
        (["objective.ranking=1"], ("objective.ranking", "rank")),
        ([f"data.mixture.{name}=0" for name in ("qa", "mcq", "cot", "small_talk")], ("data.mixture after update 0",)),
        (["model.width=256"], ("model.width", "--config.base.model.width")),
        (["data.cot.teacher=http://me:secret@host/v1"], ("data.cot.teacher",)),
        (["data.cot.teacher=http://localhost:1/v1"], ("data.cot.model",)),
    ],
    ids=lambda value: value[0],
)
def test_values_outside_of_their_domain_or_that_contradict_each_other_are_refused(words, parts):
    message = refusal(f"--config={CHAT}:nano", *(f"--config.{word}" for word in words))
    assert [part for part in parts if part not in message] == []
    assert "secret" not in message


@pytest.mark.parametrize(
    ("change", "part"),
    [
        ("c.base.optim.peek_lr = 1.0", '"base.optim.peak_lr"'),
        ("c.evals.other = {}", "evals.other"),
        ("del c.evals.ctibench.orders", "evals.ctibench.orders"),
        ("del c.optim.b1", "optim.b1"),
        ("c.stage = 'pretrain'", "A pretrain config has no key"),
        ("c.base = c.base.copy_and_resolve_references()\n    c.base.stage = 'chat'", "base."),
        ("c.stage = 'imported'", "stage is imported"),
        ("c.data.mixture_schedule = {'40': dict(qa=2)}", "40"),  # the run has 40 updates, so none is left
        ("c.data.mixture_schedule = {'soon': dict(qa=2)}", "soon"),
        ("c.data.mixture_schedule = {'05': dict(qa=2)}", "05"),  # beside '5' it would be lost
        ("c.data.mixture_schedule = {'10': dict(mqc=2)}", '"mcq"'),
        ("c.data.mixture_schedule = {'10': dict(qa=0, mcq=0, cot=0, small_talk=0)}", "update 10"),
        ("c.model.kv_heads = 3", "model.kv_heads (3)"),
        ("c.model.rope_low = 4.0", "model.rope_low (4)"),
        ("c.model.update(generation='v04', tied=False)", "model.tied"),
        ("c.base.model.rope_base = 5e5", "model.rope_base"),
    ],
)
def test_a_config_file_with_a_wrong_key_or_value_is_refused(tmp_path, change, part):
    path, lines = tmp_path / "mine.py", ["c = chat_v5.get_config('nano')", change, "return c"]
    path.write_text("from configs import chat_v5\ndef get_config(preset):\n    " + "\n    ".join(lines))
    assert part in refusal(f"--config={path}")


def test_multipliers_may_change_with_an_update():
    config = config_lib.load(f"{CHAT}:nano")
    with config.unlocked():
        config.data.mixture_schedule = {"25": {"qa": 2, "rank": 3}, "10": {"mcq": 0}}
    config.objective.ranking = 1.0  # of questions that are mixed in later
    config_lib.validate(config)
    by_start = config_lib.mixtures(config)
    assert list(by_start) == [0, 10, 25]
    assert [by_start[start]["mcq"] for start in by_start] == [5.0, 0.0, 0.0]
    assert [by_start[start]["qa"] for start in by_start] == [1.0, 1.0, 2.0]


def test_a_run_may_be_resumed_with_other_keys_that_decide_nothing_for_it_or_its_base(tmp_path):
    run_dir.open_run(tmp_path, parse(f"--config={CHAT}:nano")[0])
    for group in ("", "base."):
        free = (
            f"--config.{group}{key}" for key in ("micro_batch_size=2", "save_every=3", "model.remat=true", "keep=9")
        )
        run_dir.open_run(tmp_path, parse(f"--config={CHAT}:nano", *free)[0])
    others = ("evals.ctibench.orders=published", "log_every=7", "online_probe.every=5")
    run_dir.open_run(tmp_path, parse(f"--config={CHAT}:nano", *(f"--config.{key}" for key in others))[0])
    with pytest.raises(UserError, match=r"base\.steps is 100 there and 7 here\."):
        run_dir.open_run(tmp_path, parse(f"--config={CHAT}:nano", "--config.base.steps=7")[0])
    place = tmp_path / "config.json"
    older = json.loads(place.read_text())
    assert older["data"]["mixture"].pop("raft") == 0.0  # code that did not have this dataset
    place.write_text(json.dumps(older))
    run_dir.open_run(tmp_path, parse(f"--config={CHAT}:nano")[0])
    with pytest.raises(UserError, match=r"data\.mixture\.raft is None there and 1\.0 here\."):
        run_dir.open_run(tmp_path, parse(f"--config={CHAT}:nano", "--config.data.mixture.raft=1")[0])


@pytest.fixture
def base(tmp_path):
    """The config.json of a base run alone."""
    (tmp_path / "base").mkdir()
    (tmp_path / "base" / "config.json").write_text(config_lib.to_json(read("pretrain_v05", "nano")))
    return tmp_path / "base"


def test_keys_of_a_base_that_is_given_are_refused_and_records_do_not_have_its_path(base):
    words = (f"--config={CHAT}:nano", f"--base={base}")
    assert "--config.base.steps" in refusal(*words, "--config.base.steps=7")
    config = parse(*words)[0]
    assert str(base) in config.base.vocabulary
    run_dir.open_run(base.parent, config, list(words))
    assert str(base.parent) not in (base.parent / "config.json").read_text()
    assert run_record.read_environment(base.parent).command[1:] == [f"--base={base.name}"]


def test_the_run_directory_of_a_base_is_not_that_of_the_chat_run(tmp_path):
    with pytest.raises(UsageError, match="run directory of the base"):
        stages_of(parse(f"--config={CHAT}:nano")[0], tmp_path / "pretrain_v05-nano", None)


@pytest.mark.parametrize(("content", "named"), [("5", "config.json"), ('{"architectures": ["Llama"]}', "import_model")])
def test_a_folder_that_holds_no_run_is_refused_and_a_model_with_the_command_that_imports_it(tmp_path, content, named):
    (tmp_path / "config.json").write_text(content)
    config, _ = parse(f"--config={CHAT}:nano")
    for use in (config_lib.stand_on, run_dir.settle):
        with pytest.raises(UserError, match=named):
            use(config, tmp_path)


def test_a_run_is_opened_when_its_config_is_written_and_records_its_words_and_later_starts(tmp_path, monkeypatch):
    config, words = read("chat_v5", "nano"), ["--config.seed=3", "--workdir=mine"]
    with monkeypatch.context() as patch:
        patch.setattr(run_dir, "environment", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            run_dir.open_run(tmp_path, config, words)
    assert not (tmp_path / "config.json").exists()
    run_dir.open_run(tmp_path, config, words)
    run_dir.record_resumed(tmp_path, 0)  # as it was
    first = run_record.read_environment(tmp_path)
    assert (first.command, first.resumed) == (["--config=configs/chat_v5.py:nano", "--config.seed=3"], None)
    monkeypatch.setattr(run_dir, "machine", lambda: "another")
    for update in (10, 20):
        run_dir.record_resumed(tmp_path, update)
    found = run_record.read_environment(tmp_path)
    assert [(start["update"], start["machine"]) for start in found.resumed] == [(10, "another")]
    assert dataclasses.replace(found, resumed=None) == first


def test_a_finished_run_says_which_evaluations_it_was_not_scored_by(tmp_path, capsys):
    config = read("chat_v5", "nano")
    run_record.write_finished(tmp_path, 40, config.evals.to_dict())
    assert (run_dir.evals_of(tmp_path, config), capsys.readouterr().out) == (["ctibench"], "")
    with config.unlocked():
        config.evals = {"ctibench": config.evals.ctibench.to_dict() | {"orders": "all"}, "facts": {"batch_size": 2}}
    assert run_dir.evals_of(tmp_path, config) == ["ctibench"]
    said = capsys.readouterr().out
    assert [part for part in ("evals.ctibench.orders is cyclic", "evals.facts") if part not in said] == []


if __name__ == "__main__":
    lines = (f"{json.dumps(name)}: {json.dumps(keys, sort_keys=True)}" for name, keys in recipes().items())
    GOLDEN.write_text("{\n" + ",\n".join(lines) + "\n}\n", encoding="utf-8")
