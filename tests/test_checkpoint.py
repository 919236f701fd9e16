"""ghost_jax/training/checkpoint.py: what is restored is what was saved, on any mesh, and only of the same run."""

import json
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from ghost_jax.core.atomic_io import read_json
from ghost_jax.core.errors import UserError
from ghost_jax.model import transformer
from ghost_jax.model.config import ModelConfig
from ghost_jax.parallel.mesh import make_mesh
from ghost_jax.training.checkpoint import FOLDER, Checkpoints, Damaged, checksums, identity_of, load_model
from ghost_jax.training.optimizer import adamw, muon
from ghost_jax.training.step import TrainState, new_state, state_shardings

TINY = ModelConfig(layers=1, width=16, heads=2, mlp_dim=32, vocab_size=100, context=16)
OPTIMIZER = adamw(0.9, 0.95, 0.1, 1.0)
IDENTITY = identity_of(TINY, "t" * 64, "d" * 64)
needs_eight = pytest.mark.skipif(jax.device_count() != 8, reason="needs the 8 simulated CPU devices of conftest.py")


ABSTRACT = jax.eval_shape(lambda key: new_state(transformer.init(TINY, key), OPTIMIZER, key), jax.random.key(0))


def state_at(step: int, mesh=None) -> TrainState:
    """A state in which no two numbers of a leaf are equal and every leaf says of which update it is."""
    numbered = jax.tree.map(lambda leaf: np.arange(leaf.size, dtype=leaf.dtype).reshape(leaf.shape) + step, ABSTRACT)
    return jax.device_put(numbered, state_shardings(ABSTRACT, mesh or make_mesh()))


def save(workdir, *steps: int, keep: int = 5, mesh=None) -> None:
    with Checkpoints(workdir, keep) as checkpoints:
        for step in steps:
            checkpoints.save(state_at(step, mesh), IDENTITY, {})


def restore(workdir, mesh, identity=IDENTITY) -> TrainState:
    with Checkpoints(workdir, keep=5) as checkpoints:
        return checkpoints.restore(checkpoints.latest, ABSTRACT, mesh, identity)


def assert_same(state: TrainState, other: TrainState) -> None:
    assert jax.tree.structure(state) == jax.tree.structure(other)  # the optimizer's own types, not plain dicts
    jax.tree.map(np.testing.assert_array_equal, state, other)
    jax.tree.map(lambda a, b: None if a.dtype == b.dtype else pytest.fail(f"{a.dtype} became {b.dtype}"), state, other)


def assert_placed(state: TrainState, mesh) -> None:
    def check(leaf, wanted):
        assert leaf.sharding.is_equivalent_to(wanted, leaf.ndim)

    jax.tree.map(check, state, state_shardings(ABSTRACT, mesh))


# ---- Save and restore ----


def test_the_best_is_kept_beside_the_newest(tmp_path):
    losses = {1: 3.0, 2: 2.0, 3: 2.5, 4: 2.6, 5: 2.4}
    with Checkpoints(tmp_path, keep=2, keep_best="val_loss") as checkpoints:
        for step, loss in losses.items():
            checkpoints.save(state_at(step), IDENTITY, {"val_loss": loss})
            checkpoints.wait()
        checkpoints.save(state_at(6), IDENTITY, {})  # one without a validation is neither best nor worst
        checkpoints.wait()
    kept = sorted(int(path.name) for path in (tmp_path / "checkpoints").iterdir())
    assert kept == [2, 5, 6]


def test_what_is_restored_is_what_was_saved(tmp_path):
    mesh = make_mesh()
    save(tmp_path, 7)
    restored = restore(tmp_path, mesh)
    assert_same(restored, state_at(7))
    assert_placed(restored, mesh)


@needs_eight
@pytest.mark.parametrize("sizes", [(1, 8, 1), (2, 2, 2)], ids=str)
def test_a_checkpoint_moves_to_another_mesh(tmp_path, sizes):
    save(tmp_path, 3, mesh=make_mesh(4, 1, 2))
    mesh = make_mesh(*sizes)
    restored = restore(tmp_path, mesh)
    assert_same(restored, state_at(3))
    assert_placed(restored, mesh)


def test_saving_goes_on_while_the_state_is_donated(tmp_path):
    state, expected = state_at(1), jax.device_get(state_at(1).params)
    spoil = jax.jit(lambda tree: jax.tree.map(jnp.zeros_like, tree), donate_argnums=0)
    with Checkpoints(tmp_path, keep=1) as checkpoints:
        checkpoints.save(state, IDENTITY, {})
        spoil(state)
        checkpoints.wait()
    jax.tree.map(np.testing.assert_array_equal, restore(tmp_path, make_mesh()).params, expected)


def test_the_parameters_alone_say_which_model_they_are(tmp_path):
    save(tmp_path, 2, 4)
    model, params, step = load_model(tmp_path, make_mesh())
    assert (model, step) == (TINY, 4)
    jax.tree.map(np.testing.assert_array_equal, params, state_at(4).params)


# ---- What is kept ----


def test_the_newest_are_kept(tmp_path):
    save(tmp_path, 1, 2, 3, 4, keep=2)
    assert sorted(path.name for path in (tmp_path / FOLDER).iterdir()) == ["3", "4"]
    assert int(restore(tmp_path, make_mesh()).step) == 4


def test_saving_a_step_again_is_no_error(tmp_path):
    save(tmp_path, 1)
    save(tmp_path, 1, 2)
    with Checkpoints(tmp_path, keep=5) as checkpoints:
        assert checkpoints.latest == 2


def test_a_new_run_has_no_checkpoint(tmp_path):
    with Checkpoints(tmp_path, keep=2) as checkpoints:
        assert checkpoints.latest is None


@pytest.mark.parametrize("name", ["9.orbax-checkpoint-tmp", "9.orbax-checkpoint-tmp-1700000000"])
def test_a_checkpoint_that_was_being_written_does_not_count(tmp_path, name):
    save(tmp_path, 1, 2)
    folder = tmp_path / FOLDER
    shutil.copytree(folder / "2", folder / name)
    shutil.rmtree(folder / name / "rest")
    assert load_model(tmp_path, make_mesh())[2] == 2  # a reader sees only what is whole, and deletes nothing
    assert (folder / name).is_dir()
    assert int(restore(tmp_path, make_mesh()).step) == 2
    save(tmp_path, 9)
    assert int(restore(tmp_path, make_mesh()).step) == 9


# ---- Identity ----


@pytest.mark.parametrize(
    ("identity", "parts"),
    [
        (IDENTITY | {"tokenizer": "u" * 64}, ("tokenizer", "tttttttttttt there, uuuuuuuuuuuu here")),
        (IDENTITY | {"data": "e" * 64}, ("data", "dddddddddddd there, eeeeeeeeeeee here")),
        (
            identity_of(ModelConfig(2, 16, 2, 32, 100, context=32), "t" * 64, "d" * 64),
            ("model", "layers: 1 there, 2 here", "context: 16 there, 32 here"),
        ),
    ],
    ids=["tokenizer", "data", "model"],
)
def test_a_checkpoint_of_another_run_is_refused_with_both_sides(tmp_path, identity, parts):
    save(tmp_path, 5)
    with pytest.raises(UserError) as caught:
        restore(tmp_path, make_mesh(), identity)
    for part in ("step 5", str(tmp_path), *parts):
        assert part in str(caught.value)
    assert "width" not in str(caught.value)  # what agrees is not named


def test_an_identity_is_json(tmp_path):
    save(tmp_path, 1)
    assert json.loads(json.dumps(IDENTITY)) == IDENTITY
    with Checkpoints(tmp_path, keep=5) as checkpoints:
        assert checkpoints.identity(1) == IDENTITY


# ---- What is not there ----


def test_a_folder_without_a_run_is_named(tmp_path):
    for workdir in (tmp_path, tmp_path / "gone"):
        with pytest.raises(UserError, match=f"{workdir} holds no run"):
            load_model(workdir, make_mesh())
    assert list(tmp_path.iterdir()) == []  # looking makes nothing


def test_a_run_without_a_whole_checkpoint_is_named(tmp_path):
    (tmp_path / FOLDER / "1.orbax-checkpoint-tmp").mkdir(parents=True)
    with pytest.raises(UserError, match=f"{tmp_path} has no whole checkpoint yet"):
        load_model(tmp_path, make_mesh())


@pytest.mark.parametrize("content", [None, "", "{"])
def test_a_record_that_cannot_be_read_is_named(tmp_path, content):
    path = tmp_path / "scores.json"
    if content is not None:
        path.write_text(content)
    with pytest.raises(UserError, match=r"scores\.json cannot be read"):
        read_json(path)


# ---- Damage ----


def without_params(checkpoint):
    shutil.rmtree(checkpoint / "params")


def cut_short(checkpoint):
    for path in (checkpoint / "params").rglob("*"):
        if path.is_file():
            path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def without_identity(checkpoint):
    for path in (checkpoint / "identity").rglob("*"):
        if path.is_file():
            path.write_bytes(b'{"mod')


def with_other_arrays(checkpoint):
    """Whole arrays that are not those that were saved, as a flipped bit that no decompression notices leaves them."""
    without_params(checkpoint)
    shutil.copytree(checkpoint.with_name("2") / "params", checkpoint / "params")


DAMAGE = pytest.mark.parametrize("damage", [without_params, cut_short, without_identity, with_other_arrays])


@DAMAGE
def test_a_damaged_checkpoint_is_named_and_the_one_before_it_used(tmp_path, damage, capsys):
    save(tmp_path, 2, 4)
    damage(tmp_path / FOLDER / "4")
    mesh = make_mesh()
    assert load_model(tmp_path, mesh)[2] == 2
    assert (tmp_path / FOLDER / "4").is_dir()  # a reader moves nothing
    with Checkpoints(tmp_path, keep=2) as checkpoints:
        found = checkpoints.newest(lambda step: checkpoints.restore(step, ABSTRACT, mesh, IDENTITY))
        assert int(found.step) == 2
        checkpoints.save(state_at(4), IDENTITY, {})  # its place is free again
    assert "checkpoint of step 4" in capsys.readouterr().out
    assert load_model(tmp_path, mesh)[2] == 4
    assert [path.name[:2] for path in (tmp_path / "damaged").iterdir()] == ["4-"]


# ---- A checkpoint that is not damaged, and does not match ----


def abstract_of(optimizer=OPTIMIZER, change=lambda params: params) -> TrainState:
    return jax.eval_shape(lambda key: new_state(change(transformer.init(TINY, key)), optimizer, key), jax.random.key(0))


def renamed(params: dict) -> dict:
    return {("last_norm" if name == "final_norm" else name): leaf for name, leaf in params.items()}


def widened(params: dict) -> dict:
    return params | {"final_norm": {"scale": jnp.ones(17)}}


def rounded(params: dict) -> dict:
    return params | {"final_norm": {"scale": params["final_norm"]["scale"].astype(jnp.bfloat16)}}


# what the run has, and the leaves that differ
MISMATCHES = {
    "an optimizer with more state": (abstract_of(optax.chain(OPTIMIZER, optax.ema(0.9))), "opt_state/1/ema/"),
    "Muon instead of AdamW": (abstract_of(muon(0.9, 0.95, 0.1, 1.0)), "opt_state/1/inner_states/muon/"),
    "an optimizer with less state": (abstract_of(optax.identity()), "opt_state/1/mu/"),
    "a parameter of another name": (abstract_of(change=renamed), "params/final_norm/scale"),
    "a parameter of another shape": (abstract_of(change=widened), "[17]"),
    "a parameter of another dtype": (abstract_of(change=rounded), "bfloat16"),
}


@pytest.mark.parametrize("case", MISMATCHES)
def test_a_checkpoint_of_another_tree_is_named_leaf_by_leaf_and_nothing_moves(tmp_path, case, capsys):
    save(tmp_path, 2, 4)
    abstract, named = MISMATCHES[case]
    mesh = make_mesh(1, 1, 1, devices=jax.devices()[:1])
    with Checkpoints(tmp_path, keep=5) as checkpoints, pytest.raises(UserError) as refusal:
        checkpoints.newest(lambda step: checkpoints.restore(step, abstract, mesh, IDENTITY))
    assert not isinstance(refusal.value, Damaged)
    assert named in str(refusal.value)
    assert "step 4" in str(refusal.value)
    assert sorted(path.name for path in tmp_path.iterdir()) == [FOLDER]
    assert sorted(path.name for path in (tmp_path / FOLDER).iterdir()) == ["2", "4"]
    assert not capsys.readouterr().out


@pytest.mark.parametrize(
    "fault",
    [MemoryError("full"), PermissionError(13, "denied"), OSError(5, "I/O error"), OSError(24, "too many files")],
    ids=lambda fault: type(fault).__name__,
)
def test_what_the_system_refuses_for_now_is_no_damage(tmp_path, monkeypatch, fault):
    save(tmp_path, 2, 4)
    mesh = make_mesh()
    with Checkpoints(tmp_path, keep=5) as checkpoints:

        def refuse(*_, **__):
            raise ValueError("wrapped") from fault  # as Orbax wraps what TensorStore raises

        monkeypatch.setattr(checkpoints._reader, "restore", refuse)
        with pytest.raises(type(fault)):
            checkpoints.newest(lambda step: checkpoints.restore(step, ABSTRACT, mesh, IDENTITY))
    assert sorted(path.name for path in (tmp_path / FOLDER).iterdir()) == ["2", "4"]
    assert not (tmp_path / "damaged").exists()


def test_a_file_that_may_not_be_read_is_no_damage(tmp_path):
    save(tmp_path, 2)
    for path in (tmp_path / FOLDER / "2" / "params").rglob("*"):
        if path.is_file():
            path.unlink()
            path.symlink_to(path.name)  # a loop: the system cannot open it, whoever asks
    with pytest.raises(OSError, match="params") as refusal:
        load_model(tmp_path, make_mesh())
    assert refusal.value.errno


# ---- Where checkpoints can lie ----


@pytest.mark.parametrize("name", ["exp[1]", "a*b", "why?", "back\\slash"])
def test_a_folder_that_the_library_cannot_use_is_refused_before_anything_is_made(tmp_path, name):
    for workdir in (tmp_path / name, tmp_path / name / "run"):
        with pytest.raises(UserError) as refusal:
            Checkpoints(workdir, keep=1)
        assert str(workdir) in str(refusal.value)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", ["exp(1)", "a b", "größe", "a:b", "a,b", "{1}", "x=1", "~", "%41", "#1", "'q'"])
def test_a_folder_of_any_other_name_is_used(tmp_path, name):
    save(tmp_path / name, 1)
    assert_same(restore(tmp_path / name, make_mesh()), state_at(1))


# ---- The first save is read back ----


@needs_eight
def test_a_save_is_read_back_as_it_was_and_where_it_lay(tmp_path):
    mesh = make_mesh(2, 2, 2)
    with Checkpoints(tmp_path, keep=1) as checkpoints:
        checkpoints.save(state_at(3, mesh), IDENTITY, {})
        found = checkpoints.read_back(state_at(3, mesh), mesh, IDENTITY)
    assert_same(found, state_at(3))
    assert_placed(found, mesh)


@DAMAGE
def test_a_save_that_cannot_be_read_back_ends_the_run(tmp_path, damage):
    if damage is with_other_arrays:
        save(tmp_path, 2)
    mesh = make_mesh()
    with Checkpoints(tmp_path, keep=5) as checkpoints:
        checkpoints.save(state_at(4), IDENTITY, {})
        checkpoints.wait()
        damage(tmp_path / FOLDER / "4")
        with pytest.raises(UserError, match="step 4") as refusal:
            checkpoints.read_back(state_at(4), mesh, IDENTITY)
    assert not isinstance(refusal.value, Damaged)


# ---- Checksums ----


@pytest.mark.parametrize("bit", [0, 7, 31])
@pytest.mark.parametrize("place", [(0, 0), (2, 1)])
def test_every_bit_of_an_array_counts_in_its_checksum(place, bit):
    sound = {"kernel": jnp.arange(6, dtype=jnp.float32).reshape(3, 2), "count": jnp.int32(7)}
    bits = np.array(sound["kernel"]).view(np.uint32)
    bits[place] ^= np.uint32(1 << bit)
    there, here = checksums(sound), checksums(sound | {"kernel": jnp.asarray(bits.view(np.float32))})
    assert [a == b for a, b in zip(there, here, strict=True)] == [True, False]  # leaves in the order of their names


def test_a_run_whose_checkpoints_are_all_damaged_does_not_begin_anew(tmp_path):
    save(tmp_path, 2)
    without_params(tmp_path / FOLDER / "2")
    with pytest.raises(UserError, match=r"No checkpoint in .* can be read"):
        load_model(tmp_path, make_mesh())


def test_a_checkpoint_of_an_earlier_version_is_refused(tmp_path):
    model = {("hidden" if key == "mlp_dim" else key): value for key, value in IDENTITY["model"].items()}
    with Checkpoints(tmp_path, keep=1) as checkpoints:
        checkpoints.save(state_at(2), {**IDENTITY, "model": model}, {})
    with pytest.raises(UserError, match=r"step 2 .* is of another version .* Train the run again, or use the version"):
        load_model(tmp_path, make_mesh())
