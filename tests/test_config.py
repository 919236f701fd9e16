"""ghost_jax/config: every config loads with its documented figures; wrong keys, values and files are refused."""

import argparse
import json
import shutil
from pathlib import Path

import pytest
from ml_collections import ConfigDict

from configs import common
from evals.analysis import recorded
from ghost_jax.config import load as config_lib
from ghost_jax.config.validate import leaves
from ghost_jax.core.errors import BAD_USAGE, UsageError, UserError
from ghost_jax.runs import run_dir, run_record
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
    """Writes a config file of the user's own, `configs/mine.py` in a folder."""
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


def test_a_url_with_a_password_is_refused_and_not_repeated():
    message = refusal(f"--config={CHAT}", "--config.data.cot.teacher=http://me:secret@host/v1")
    assert "data.cot.teacher" in message
    assert "secret" not in message


def test_a_missing_file_or_preset_is_named(tmp_path):
    assert "gone.py" in refusal(f"--config={tmp_path}/gone.py")
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


if __name__ == "__main__":
    lines = (f"{json.dumps(name)}: {json.dumps(keys, sort_keys=True)}" for name, keys in recipes().items())
    GOLDEN.write_text("{\n" + ",\n".join(lines) + "\n}\n", encoding="utf-8")
