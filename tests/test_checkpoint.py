"""ghost_jax/training/checkpoint.py: what is restored is what was saved, on any mesh, and only of the same run."""

import os
import shutil
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ghost_jax.core.errors import UserError
from ghost_jax.model.config import ModelConfig
from ghost_jax.parallel.mesh import make_mesh
from ghost_jax.parallel.sharding_rules import shardings
from ghost_jax.text import tokenizer
from ghost_jax.training.checkpoint import FOLDER, Checkpoints, Corrupt, checksums, identity_of, params_of
from ghost_jax.training.loading import check_base, load_model, newest_record
from ghost_jax.training.optimizer import adamw, muon
from ghost_jax.training.step import TrainState, abstract_state
from tests.models import needs_eight, one_device

TINY = ModelConfig(layers=1, width=16, heads=2, mlp_dim=32, vocab_size=100, context=16)
OPTIMIZER = adamw(0.9, 0.95, 0.1, 1.0)
IDENTITY = identity_of(TINY, "t" * 64, "d" * 64)
ABSTRACT = abstract_state(TINY, OPTIMIZER)


def state_at(step: int, mesh=None) -> TrainState:
    """A state in which no two numbers of a leaf are equal and every leaf depends on the update."""
    numbered = jax.tree.map(lambda leaf: np.arange(leaf.size, dtype=leaf.dtype).reshape(leaf.shape) + step, ABSTRACT)
    return jax.device_put(numbered, shardings(ABSTRACT, mesh or make_mesh()))


def save(workdir, *steps: int, mesh=None, identity=IDENTITY) -> None:
    with Checkpoints(workdir, keep=5) as checkpoints:
        for step in steps:
            checkpoints.save(state_at(step, mesh), identity)


def restore(workdir, mesh=None, identity=IDENTITY, abstract=ABSTRACT) -> TrainState:
    mesh = mesh or make_mesh()
    with Checkpoints(workdir, keep=5) as checkpoints:
        return checkpoints.newest(lambda step: checkpoints.restore(step, abstract, mesh, identity))


def saved_in(workdir) -> list[str]:
    return sorted(path.name for path in (workdir / FOLDER).iterdir())


def assert_same(state: TrainState, other: TrainState, mesh=None) -> None:
    """Equal in structure (the optimizer's own types), numbers, types and places."""
    assert jax.tree.structure(state) == jax.tree.structure(other)
    trees = state, other, shardings(ABSTRACT, mesh or make_mesh())
    for leaf, wanted, place in zip(*map(jax.tree.leaves, trees), strict=True):
        np.testing.assert_array_equal(leaf, wanted)
        assert leaf.dtype == wanted.dtype
        assert leaf.sharding.is_equivalent_to(place, leaf.ndim)


@needs_eight
@pytest.mark.parametrize(("before", "after"), [((-1,), (-1,)), ((4, 1, 2), (1, 8, 1))], ids=str)
def test_a_state_is_restored_as_it_was_on_any_mesh(tmp_path, before, after):
    save(tmp_path, 7, mesh=make_mesh(*before))
    mesh = make_mesh(*after)
    assert_same(restore(tmp_path, mesh), state_at(7), mesh)
    model, params, step = load_model(tmp_path, mesh)
    assert (model, step) == (TINY, 7)
    jax.tree.map(np.testing.assert_array_equal, params, state_at(7).params)


def test_the_newest_are_kept(tmp_path):
    with Checkpoints(tmp_path, keep=2) as checkpoints:
        for step in (1, 2, 3):
            checkpoints.save(state_at(step), IDENTITY)
    assert saved_in(tmp_path) == ["2", "3"]


def test_an_unfinished_checkpoint_does_not_count(tmp_path):
    save(tmp_path, 1, 2)
    unfinished = tmp_path / FOLDER / "9.orbax-checkpoint-tmp-1700000000"
    shutil.copytree(tmp_path / FOLDER / "2", unfinished)
    shutil.rmtree(unfinished / "rest")
    assert load_model(tmp_path, make_mesh())[2] == 2
    assert unfinished.is_dir()  # a reader deletes nothing
    save(tmp_path, 9)
    assert int(restore(tmp_path).step) == 9


def test_a_folder_without_a_complete_checkpoint_is_refused(tmp_path):
    for workdir in (tmp_path, tmp_path / "gone"):
        with pytest.raises(UserError, match=str(workdir)):
            load_model(workdir, make_mesh())
    assert list(tmp_path.iterdir()) == []  # a reader makes nothing
    (tmp_path / FOLDER / "1.orbax-checkpoint-tmp").mkdir(parents=True)
    with pytest.raises(UserError, match=str(tmp_path)):
        load_model(tmp_path, make_mesh())


def with_params(**changed: dict) -> TrainState:
    return ABSTRACT.replace(params=ABSTRACT.params | changed)


def of_final_norm(width: int, dtype: str) -> dict:
    return {"scale": jax.ShapeDtypeStruct((width,), dtype)}


OTHER_MODEL = identity_of(ModelConfig(2, 16, 2, 32, 100, context=32), "t" * 64, "d" * 64)
MISMATCHES = {  # what the run has, and what the message names
    "another optimizer": (
        {"abstract": abstract_state(TINY, muon(0.9, 0.95, 0.1, 1.0))},
        ["opt_state/1/mu/", "opt_state/1/inner_states/muon/"],
    ),
    "another name": ({"abstract": with_params(last_norm=of_final_norm(16, "float32"))}, ["params/last_norm/scale"]),
    "another shape": ({"abstract": with_params(final_norm=of_final_norm(17, "float32"))}, ["[17]"]),
    "another dtype": ({"abstract": with_params(final_norm=of_final_norm(16, "bfloat16"))}, ["bfloat16"]),
    "another tokenizer": ({"identity": IDENTITY | {"tokenizer": "u" * 64}}, ["tokenizer", "uuu", "ttt"]),
    "other data": ({"identity": IDENTITY | {"data": "e" * 64}}, ["data", "eee", "ddd"]),
    "another model": ({"identity": OTHER_MODEL}, ["layers: 1 there, 2 here", "context: 16 there, 32 here"]),
}


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    workdir = tmp_path_factory.mktemp("saved")
    save(workdir, 2, 4)
    return workdir


@pytest.mark.parametrize("case", MISMATCHES)
def test_a_checkpoint_of_another_run_is_refused_by_its_differences_and_nothing_moves(saved, case):
    given, parts = MISMATCHES[case]
    with pytest.raises(UserError) as refusal:
        restore(saved, one_device(), **given)
    assert not isinstance(refusal.value, Corrupt)
    assert all(part in str(refusal.value) for part in ("step 4", str(saved), *parts))
    assert "width" not in str(refusal.value), "it does not differ"
    assert [path.name for path in saved.iterdir()] == [FOLDER]
    assert saved_in(saved) == ["2", "4"]


def files_in(folder: Path) -> list[Path]:
    return [path for path in folder.rglob("*") if path.is_file()]


def without_params(checkpoint):
    shutil.rmtree(checkpoint / "params")


def cut_short(checkpoint):
    for path in files_in(checkpoint / "params"):
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def without_identity(checkpoint):
    for path in files_in(checkpoint / "identity"):
        path.write_bytes(b'{"mod')


def with_other_arrays(checkpoint):
    """Complete arrays that are not those that were saved, as after a flipped bit that no decompression detects."""
    without_params(checkpoint)
    shutil.copytree(checkpoint.with_name("2") / "params", checkpoint / "params")


@pytest.mark.parametrize("corrupt", [without_params, cut_short, without_identity, with_other_arrays])
def test_a_corrupt_checkpoint_is_reported_and_moved_and_the_one_before_it_used(tmp_path, corrupt, capsys):
    save(tmp_path, 2, 4)
    corrupt(tmp_path / FOLDER / "4")
    assert load_model(tmp_path, make_mesh())[2] == 2
    assert saved_in(tmp_path) == ["2", "4"]  # a reader moves nothing
    assert int(restore(tmp_path).step) == 2
    assert "step 4" in capsys.readouterr().out
    assert [path.name[:2] for path in (tmp_path / "corrupt").iterdir()] == ["4-"]
    save(tmp_path, 4)
    assert load_model(tmp_path, make_mesh())[2] == 4


@needs_eight
def test_a_save_is_read_back_where_it_was_and_a_corrupt_one_ends_the_run(tmp_path):
    mesh = make_mesh(2, 2, 2)
    with Checkpoints(tmp_path, keep=5) as checkpoints:
        checkpoints.save(state_at(2, mesh), IDENTITY)
        assert_same(checkpoints.read_back(state_at(2, mesh), mesh, IDENTITY), state_at(2), mesh)
        checkpoints.save(state_at(4), IDENTITY)
        checkpoints.wait()
        with_other_arrays(tmp_path / FOLDER / "4")
        with pytest.raises(UserError, match="step 4") as refusal:
            checkpoints.read_back(state_at(4), mesh, IDENTITY)
    assert not isinstance(refusal.value, Corrupt)


def unreadable_for_the_system(checkpoint):
    for path in files_in(checkpoint / "params"):
        path.unlink()
        path.symlink_to(path.name)  # a loop


@pytest.mark.parametrize(("damage", "fault"), [(without_params, UserError), (unreadable_for_the_system, OSError)])
def test_a_run_of_which_no_checkpoint_can_be_read_does_not_restart(tmp_path, damage, fault):
    save(tmp_path, 2, 4)
    for step in ("2", "4"):
        damage(tmp_path / FOLDER / step)
    for read in (lambda: load_model(tmp_path, make_mesh()), lambda: restore(tmp_path)):
        with pytest.raises(fault, match=str(tmp_path)):
            read()
    assert saved_in(tmp_path) == ["2", "4"]


@pytest.mark.parametrize(("place", "bit"), [((0, 0), 0), ((2, 1), 31)])
def test_every_bit_of_an_array_counts_in_its_checksum(place, bit):
    sound = {"kernel": jnp.arange(6, dtype=jnp.float32).reshape(3, 2), "count": jnp.int32(7)}
    bits = np.array(sound["kernel"]).view(np.uint32)
    bits[place] ^= np.uint32(1 << bit)
    there, here = checksums(sound), checksums(sound | {"kernel": jnp.asarray(bits.view(np.float32))})
    assert [a == b for a, b in zip(there, here, strict=True)] == [True, False]  # leaves in the order of their names


@pytest.mark.parametrize("name", ["exp[1]", "exp[1]/run", "a*b", "why?", "back\\slash", "file", os.devnull])
def test_a_run_directory_that_cannot_hold_a_checkpoint_is_refused_before_anything_is_made(tmp_path, name):
    (tmp_path / "file").touch()
    with pytest.raises(UserError) as refusal:
        Checkpoints(tmp_path / name, keep=1)
    assert str(tmp_path / name) in str(refusal.value)
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_a_run_is_bound_to_the_parameters_of_its_base(tmp_path):
    base, other, chat = tmp_path / "base", tmp_path / "other", tmp_path / "chat"
    save(base, 1, 2)
    save(other, 3)
    check_base(chat, base)  # not started
    save(chat, 1, identity=IDENTITY | {"base": params_of(newest_record(base)[1])})
    check_base(chat, shutil.copytree(base, tmp_path / "copy"))
    for place in (other, tmp_path / "gone"):
        with pytest.raises(UserError, match=str(place)):
            check_base(chat, place)
    with pytest.raises(UserError, match="base: "):
        newest_record(chat, IDENTITY | {"base": params_of(newest_record(other)[1])})


def test_a_model_is_loaded_at_the_step_that_is_needed_and_with_its_own_vocabulary(tmp_path):
    save(tmp_path, 2, 4)
    assert load_model(tmp_path, make_mesh(), 4)[2] == 4
    tokenizer.train(["a text " * 50], 270).save(tmp_path / "tokenizer.json")
    with pytest.raises(UserError, match="another tokenizer"):
        load_model(tmp_path, make_mesh())
    (tmp_path / "tokenizer.json").unlink()
    without_params(tmp_path / FOLDER / "4")
    with pytest.raises(UserError, match="step 4"):
        load_model(tmp_path, make_mesh(), 4)
