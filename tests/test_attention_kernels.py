"""ghost_jax/model/attention_kernels.py: which attention a run gets, and that splash computes what blocks do."""

import functools
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ml_collections import ConfigDict

from ghost_jax.config import load as config_lib
from ghost_jax.core.errors import UsageError
from ghost_jax.model import attention_kernels, transformer
from ghost_jax.model.attention import attend_causally, visibility
from ghost_jax.model.attention_kernels import LANES, Choice, choose, splash
from ghost_jax.model.config import ModelConfig
from ghost_jax.model.dense import KEPT
from ghost_jax.model.transformer import Transformer
from ghost_jax.parallel.mesh import batch_sharding, make_mesh
from ghost_jax.runs import run_dir
from ghost_jax.training import setup
from ghost_jax.training.checkpoint import identity_of
from ghost_jax.training.loss import loss_sum
from launch.compile_check import matrix_flops
from tests.conftest import ROOT

RUN = {"dtype": "bfloat16", "head_width": 64, "mask": "segments", "length": 512}  # every kernel takes it
pytestmark = pytest.mark.usefixtures("compile_quickly")
needs_eight = pytest.mark.skipif(jax.device_count() != 8, reason="needs the 8 simulated CPU devices of conftest.py")

# ---- Which attention a run gets ----


@pytest.mark.parametrize(("platform", "kernel"), [("cpu", "blocks"), ("cuda", "cudnn"), ("tpu", "splash")])
def test_auto_is_the_kernel_of_the_platform(platform, kernel):
    assert choose("auto", platform, **RUN) == Choice(kernel)


@pytest.mark.parametrize("platform", ["cpu", "cuda", "cuda before 8.0", "rocm", "tpu"])
def test_blocks_can_be_asked_for_anywhere(platform):
    assert choose("blocks", platform, dtype="float32", head_width=6, mask="branches", length=7) == Choice("blocks")


@pytest.mark.parametrize(
    ("kernel", "platform", "change"),
    [
        ("cudnn", "cuda", {"dtype": "float32"}),
        ("cudnn", "cuda", {"head_width": 160}),
        ("cudnn", "cuda", {"head_width": 36}),
        ("cudnn", "cuda", {"length": 511}),
        ("splash", "tpu", {"mask": "branches"}),
        ("splash", "tpu", {"length": 500}),
        ("splash", "tpu", {"length": 64}),
    ],
)
def test_where_a_kernel_cannot_be_used_auto_says_why_and_asking_for_it_is_refused(kernel, platform, change):
    run = RUN | change
    chosen = choose("auto", platform, **run)
    assert chosen.name == "blocks"
    assert kernel in chosen.fallback
    with pytest.raises(UsageError, match=r"model\.attention"):
        choose(kernel, platform, **run)


@pytest.mark.parametrize("change", [{"mask": "branches"}, {"mask": "causal", "length": 511}, {"head_width": 128}])
def test_cudnn_takes_any_mask_that_fits_its_tiles(change):
    assert choose("auto", "cuda", **RUN | change).name == "cudnn"


@pytest.mark.parametrize("change", [{"dtype": "float32"}, {"head_width": 32}, {"mask": "causal"}, {"length": LANES}])
def test_splash_takes_any_type_and_head_width(change):
    assert choose("auto", "tpu", **RUN | change).name == "splash"


@pytest.mark.parametrize("platform", ["rocm", "cuda before 8.0"])
def test_an_accelerator_without_a_kernel_gets_blocks_and_says_so(platform):
    chosen = choose("auto", platform, **RUN)
    assert chosen.name == "blocks"
    assert platform in chosen.fallback


@pytest.mark.parametrize("kernel", ["cudnn", "splash"])
@pytest.mark.parametrize("platform", ["cpu", "cuda", "tpu", "rocm"])
def test_a_kernel_of_another_platform_is_refused(kernel, platform):
    if attention_kernels.NATIVE.get(platform) == kernel:
        return
    with pytest.raises(UsageError, match=r"model\.attention"):
        choose(kernel, platform, **RUN)


def config_of(name: str, **values: object) -> ConfigDict:
    config = config_lib.load(f"{ROOT}/configs/{name}.py:nano")
    for key, value in values.items():
        config_lib.override(config, key.replace("__", "."), str(value))
    return config


@pytest.mark.parametrize(
    ("recipe", "values", "mask"),
    [
        ("pretrain_v05", {}, "causal"),
        ("chat_v5", {}, "segments"),
        ("chat_v5", {"data__packing": "false"}, "causal"),
        ("chat_v5", {"data__mixture__rank": 1.0}, "branches"),
        ("chat_reader", {}, "branches"),
    ],
)
def test_a_config_says_which_mask_its_rows_have(monkeypatch, recipe, values, mask):
    monkeypatch.setattr(attention_kernels, "choose", lambda *asked, **run: (asked, run))
    (asked, platform), run = setup.attention_of(config_of(recipe, **values), make_mesh())
    assert (asked, platform, run["mask"]) == ("auto", "cpu", mask)


def test_a_config_that_names_a_kernel_of_another_platform_is_refused():
    with pytest.raises(UsageError, match=r"model\.attention"):
        setup.attention_of(config_of("pretrain_v05", model__attention="cudnn"), make_mesh())


def test_the_attention_decides_neither_the_recipe_nor_the_checkpoint():
    blocks, auto = config_of("chat_v5", model__attention="blocks").to_dict(), config_of("chat_v5").to_dict()
    older = {**auto, "model": {key: value for key, value in auto["model"].items() if key != "attention"}}
    assert config_lib.recipe_of(blocks) == config_lib.recipe_of(auto) == config_lib.recipe_of(older)
    shape = {key: value for key, value in auto["model"].items() if key != "attention"}
    models = [ModelConfig(**shape), ModelConfig(**shape, attention="splash")]
    assert identity_of(models[0], "t", "d") == identity_of(models[1], "t", "d")


def test_a_run_from_before_there_was_a_choice_is_continued(tmp_path):
    config = config_of("chat_v5")
    older = config.to_dict()
    for model in (older["model"], older["base"]["model"]):
        del model["attention"]
    (tmp_path / "config.json").write_text(json.dumps(older))
    run_dir.open_run(tmp_path, config)  # raises where it takes the run for another


# ---- Splash computes what blocks do ----

ROWS, HEADS = 8, 4


def arrays_of(length: int, groups: int = HEADS, width: int = 16) -> tuple[jax.Array, ...]:
    rng = np.random.default_rng(0)
    shapes = [(ROWS, length, heads, width) for heads in (HEADS, groups, groups, HEADS)]
    return tuple(jnp.asarray(rng.standard_normal(shape), jnp.float32) for shape in shapes)


def packed(length: int) -> jax.Array:
    """Segments [B, T] as `packing.fill` makes them: from 1 on, and 0 behind the last. Row 0 is all padding."""
    segments = np.sort(np.random.default_rng(1).integers(1, 4, (ROWS, length)), axis=1)
    segments[1:, -5:] = segments[0] = 0
    return jnp.asarray(segments, jnp.int32)


def value_and_gradients(attention, q, k, v, weights):
    def weighed(*arrays):
        attended = attention(*arrays)
        return jnp.sum(attended * weights), attended

    gradients, attended = jax.jit(jax.grad(weighed, argnums=(0, 1, 2), has_aux=True))(q, k, v)
    return (attended, *gradients)


def assert_same(ours, theirs):
    for one, other in zip(ours, theirs, strict=True):
        np.testing.assert_allclose(one, other, rtol=2e-4, atol=2e-5)


@pytest.mark.parametrize(
    ("length", "groups", "segments"), [(LANES, HEADS, None), (5 * LANES, HEADS, packed), (3 * LANES, 2, packed)]
)
def test_splash_is_attention_in_blocks_forward_and_backward(length, groups, segments):
    arrays, ids = arrays_of(length, groups), segments and segments(length)
    assert_same(
        value_and_gradients(lambda *a: splash(*a, ids, interpret=True), *arrays),
        value_and_gradients(lambda *a: attend_causally(*a, visibility(ids, None)), *arrays),
    )


@pytest.fixture
def interpreted(monkeypatch):
    monkeypatch.setitem(attention_kernels.KERNELS, "splash", functools.partial(splash, interpret=True))


@needs_eight
def test_a_model_trains_with_splash_on_a_mesh_as_with_blocks_on_one_device(interpreted):
    """Rows over fsdp, heads over tensor, each layer inside a scan and a remat."""
    config = ModelConfig(layers=2, width=32, heads=HEADS, mlp_dim=48, vocab_size=97, context=LANES, scan=True)
    params = jax.tree.map(jnp.asarray, transformer.init(config, jax.random.key(0)))
    rng, segments = np.random.default_rng(2), packed(LANES)
    tokens, targets = (jnp.asarray(rng.integers(0, 97, segments.shape), jnp.int32) for _ in range(2))
    batch = {"tokens": tokens, "targets": targets, "weights": (segments > 0).astype(jnp.float32), "segments": segments}

    def gradient(attention, rows):
        model = Transformer(ModelConfig(**{**config.record(), "attention": attention}), rows)
        place = rows and (None, rows)
        return jax.jit(jax.value_and_grad(lambda p, b: loss_sum(model, p, b)[0]), in_shardings=place)(params, batch)

    splashed, ours = gradient("splash", batch_sharding(make_mesh(1, 2, 2, devices=jax.devices()[:4])))
    blocked, theirs = gradient("blocks", None)
    assert float(splashed) == pytest.approx(float(blocked), rel=1e-5)
    assert_same(jax.tree.leaves(ours), jax.tree.leaves(theirs))


def test_splash_refuses_what_equal_segments_cannot_say(interpreted):
    config = ModelConfig(layers=1, width=32, heads=2, mlp_dim=48, vocab_size=97, attention="splash")
    tokens = jnp.zeros((1, LANES), jnp.int32)
    model, params = Transformer(config), jax.eval_shape(lambda: transformer.init(config, jax.random.key(0)))
    for more in ({"branches": tokens}, {"at": tokens[:, :1]}):
        with pytest.raises(ValueError, match="splash"):
            jax.eval_shape(lambda p, more=more: model.apply({"params": p}, tokens, **more, method="hidden"), params)


@needs_eight
def test_the_products_of_a_kernel_are_counted_on_all_devices():
    """Forward two products of T x T a head, backward five, of all tiles."""
    length, width = 2 * LANES, 16
    q, k, v, _ = (jax.ShapeDtypeStruct(each.shape, each.dtype) for each in arrays_of(length, width=width))
    segments = jax.ShapeDtypeStruct((ROWS, length), jnp.int32)
    rows = batch_sharding(make_mesh(2, 2, 2))

    def attended(*arrays):
        return jnp.sum(attention_kernels.attend_whole("splash", *arrays, rows))

    square = 2 * ROWS * HEADS * length * length * width
    assert matrix_flops(jax.make_jaxpr(attended)(q, k, v, segments).jaxpr) == 2 * square
    # Remat computes the forward kernel again, and the compiler removes that, because its results were kept.
    keeping = jax.checkpoint(attended, policy=jax.checkpoint_policies.save_only_these_names(KEPT))
    for function in (attended, keeping):
        both = jax.make_jaxpr(jax.grad(function, argnums=(0, 1, 2)))(q, k, v, segments)
        assert matrix_flops(both.jaxpr) == pytest.approx(7 * square, rel=0.01)
