"""The decoder-only transformer, both generations of the study by config.

v0.5: rotary positions, RMSNorm before each branch, SwiGLU without bias. v0.4: learned positions, LayerNorm, GELU. Both
have a fused QKV projection and a tied head. An imported Llama is a v0.5 with shared heads of keys and values, a head of
its own, or stretched rotary waves. Shapes: B sequences, T tokens, D width, H heads, G heads of keys and values, K head
width, F feed-forward width, V padded vocabulary; of a cache, L layers and S slots.
"""

import dataclasses
import functools
import math
from typing import Any

import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp
from jax import Array
from jax.sharding import NamedSharding

from ghost_jax.model import attention as attention_lib
from ghost_jax.model.attention import MASKED, KeysValues, apply_rope, gather_positions
from ghost_jax.model.attention_kernels import kernel_attention, kernel_mask
from ghost_jax.model.config import ModelConfig
from ghost_jax.model.dense import KEPT, Dense

INIT_STD = 0.02
Maybe = Array | tuple[Array, Array] | None  # an array, or a pair such as `CosSin` and `KeysValues`


@flax.struct.dataclass
class Cache:
    """Keys and values of the tokens so far, so that the next token costs one token's work.

    All rows write to the same slot, which is far cheaper than a slot of each row's own. Behind a shorter prompt lie
    slots without a token of its row.
    """

    # keys, values: [L, B, G, S, K] in the compute type; keys are rotated already
    keys: Array
    values: Array
    filled: Array  # [B, S] bool, the slots that hold a token of their row
    length: Array  # [B] int32, the tokens of each row: the position of its next one
    used: Array  # int32 [], the first slot that is free in all rows

    @classmethod
    def empty(cls, config: ModelConfig, rows: int) -> "Cache":
        """Returns the cache of B = `rows` rows before their first token, without slots."""
        shape = (config.layers, rows, config.cached_heads, 0, config.head_width)
        keys, values = jnp.zeros(shape, config.dtype), jnp.zeros(shape, config.dtype)  # two arrays: both are donated
        return cls(keys, values, jnp.zeros((rows, 0), bool), jnp.zeros(rows, jnp.int32), jnp.int32(0))


class Norm(nn.Module):
    """RMSNorm (v0.5) or LayerNorm (v0.4) of x [B, T, D] float32, in the compute type."""

    config: ModelConfig

    @nn.compact
    def __call__(self, x: Array) -> Array:
        c, layer_norm = self.config, self.config.generation == "v04"
        scale = self.param("scale", nn.initializers.ones, (x.shape[-1],))
        h = x - x.mean(-1, keepdims=True) if layer_norm else x
        h = h * jax.lax.rsqrt((h * h).mean(-1, keepdims=True) + c.norm_eps) * scale
        if layer_norm:
            h = h + self.param("bias", nn.initializers.zeros, (x.shape[-1],))
        return h.astype(c.dtype)


class Attention(nn.Module):
    """Causal self-attention with one fused QKV projection, or one of Q and one of KV where heads share keys.

    `__call__` returns its addition to x [B, T, D], and None or the keys and values of x, which cached queries return.

    Args of `__call__`:
      cos_sin: of rotary positions; None for learned ones.
      mask: of `kernel_mask`; with `past` the full mask [B, 1, T, S + T], with `at` the full mask [B, 1, R, T].
      past: keys and values of the tokens before x.
      at: [B, R], the positions whose addition alone is returned, [B, R, D].
    """

    config: ModelConfig
    rows: NamedSharding | None = None

    @nn.compact
    def __call__(
        self, x: Array, cos_sin: Maybe, mask: Maybe, past: Maybe = None, at: Maybe = None
    ) -> tuple[Array, Maybe]:
        c, new = self.config, None
        # Heads have an axis of their own, so that a tensor-parallel mesh splits heads and never the inside of one.
        project = functools.partial(Dense, bias=c.attention_bias or c.generation == "v04", dtype=c.dtype)
        if c.cached_heads == c.heads:
            q, k, v = jnp.unstack(project((3, c.heads, c.head_width), INIT_STD, name="qkv")(x), axis=2)
        else:
            q = project((c.heads, c.head_width), INIT_STD, name="q")(x)
            k, v = jnp.unstack(project((2, c.kv_heads, c.head_width), INIT_STD, name="kv")(x), axis=2)
        if cos_sin is not None:
            q, k = apply_rope(q, cos_sin), apply_rope(k, cos_sin)
        by_head = k.swapaxes(1, 2), v.swapaxes(1, 2)
        if at is not None:
            none = tuple(each[:, :, :0] for each in by_head)
            attended = attention_lib.cached_attention(gather_positions(q, at), by_head, none, mask)
        elif past is None:
            attended = kernel_attention(c.attention, q, k, v, mask, self.rows)  # [B, T, H, K]
        elif past[0].shape[2]:
            attended, new = attention_lib.cached_attention(q, past, by_head, mask), by_head
        else:  # a prompt, whose weights for all pairs of tokens would take gigabytes
            attended, new = attention_lib.causal_attention(q, k, v, None), by_head
        return project((c.width,), INIT_STD / math.sqrt(2 * c.layers), inputs=2, name="out")(attended), new


class FeedForward(nn.Module):
    """SwiGLU (v0.5) or GELU (v0.4)."""

    config: ModelConfig

    @nn.compact
    def __call__(self, x: Array) -> Array:
        c, bias = self.config, self.config.generation == "v04"
        dense = functools.partial(Dense, bias=bias, dtype=c.dtype)
        # In float32: XLA's CPU compiler rounds to bfloat16 and back after each operation between bfloat16 values.
        up = dense((c.mlp_dim,), INIT_STD, name="up")(x).astype(jnp.float32)
        if bias:
            h = nn.gelu(up, approximate=True)
        else:
            h = nn.silu(dense((c.mlp_dim,), INIT_STD, name="gate")(x).astype(jnp.float32)) * up
        return dense((c.width,), INIT_STD / math.sqrt(2 * c.layers), name="down")(h)


class Block(nn.Module):
    """One pre-norm layer; arguments and results are those of `Attention`."""

    config: ModelConfig
    rows: NamedSharding | None = None

    @nn.compact
    def __call__(
        self, x: Array, cos_sin: Maybe, mask: Maybe, deterministic: bool, past: Maybe = None, at: Maybe = None
    ) -> tuple[Array, Maybe]:
        c = self.config
        attention = Attention(c, self.rows, name="attention")
        attended, new = attention(Norm(c, name="attention_norm")(x), cos_sin, mask, past, at)
        x = x if at is None else gather_positions(x, at)
        x = x + nn.Dropout(c.dropout, deterministic=deterministic)(attended)
        fed = FeedForward(c, name="feed_forward")(Norm(c, name="feed_forward_norm")(x))
        return x + nn.Dropout(c.dropout, deterministic=deterministic)(fed), new


class Transformer(nn.Module):
    """Tokens in, logits out; `hidden` and `head` are its two halves, for callers that need logits at few positions.

    Text is generated by `prefill` of the prompt and `extend`, a few tokens at a time.

    Attributes:
      rows: the sharding of activations [B, T, D]. Without it the compiler follows the parameters of a mesh with fsdp
        and splits activations by their width, which costs a 350M model fifty times the memory.
    """

    config: ModelConfig
    rows: NamedSharding | None = None

    def setup(self):
        c, normal = self.config, nn.initializers.normal(INIT_STD)
        self.embedding = self.param("embedding", normal, (c.padded_vocab, c.width))
        if not c.tied:
            self.unembedding = self.param("unembedding", normal, (c.padded_vocab, c.width))
        if c.generation == "v04":
            self.position_embedding = self.param("position_embedding", normal, (c.context, c.width))
        # The backward pass keeps results of matrices and attention; elementwise ones are cheaper computed again.
        saved = None if c.remat else jax.checkpoint_policies.save_only_these_names(KEPT)
        # Inside a scan nothing can undo a remat by merging both computations of a block into one.
        block = nn.remat(Block, static_argnums=(4,), prevent_cse=not c.scan, policy=saved)
        names = [f"block_{i}" for i in range(c.layers)]
        self.block = (
            block(c, self.rows, name="blocks") if c.scan else [block(c, self.rows, name=name) for name in names]
        )
        self.final_norm = Norm(c, name="final_norm")
        self.embedding_dropout = nn.Dropout(c.dropout)

    def hidden(
        self,
        tokens: Array,
        positions: Maybe = None,
        segments: Maybe = None,
        branches: Maybe = None,
        deterministic: bool = True,
        at: Maybe = None,
    ) -> Array:
        """Returns the normalised last hidden state [B, T, D] of tokens [B, T] under causal attention.

        Args:
          positions: [B, T], by default 0 to T - 1; in a packed row they restart with each conversation.
          segments: [B, T], the conversation of a token in a packed row: it attends to that and segment 0 alone.
          branches: [B, T], the branch of a token in its conversation: it attends to that and branch 0 alone.
          at: [B, R], the positions whose hidden states alone are returned, [B, R, D], and computed in the last layer.
        """
        if tokens.shape[1] > self.config.context:
            raise ValueError(f"{tokens.shape[1]} tokens do not fit a context of {self.config.context}")
        if positions is None:
            positions = jnp.broadcast_to(jnp.arange(tokens.shape[1]), tokens.shape)
        mask = kernel_mask(self.config.attention, segments, branches, at)
        return self._blocks(tokens, positions, mask, deterministic, at=at)[0]

    def prefill(self, tokens: Array, lengths: Array, slots: int) -> tuple[Array, Cache]:
        """Returns the last hidden state [B, T, D] of prompts and their cache of `slots` slots.

        Args:
          tokens: [B, T], each row's prompt from the left; tokens right of it have no effect.
          lengths: [B], of each prompt.
          slots: the most tokens of a row that the cache will hold, T or more.
        """
        rows, length = tokens.shape
        x, new = self._extend(tokens, Cache.empty(self.config, rows))
        keys, values = (jnp.pad(each, ((0, 0), (0, 0), (0, 0), (0, slots - length), (0, 0))) for each in new)
        return x, Cache(keys, values, jnp.arange(slots) < lengths[:, None], lengths, jnp.int32(length))

    def extend(self, tokens: Array, cache: Cache) -> tuple[Array, Cache]:
        """Returns the last hidden state [B, T, D] of tokens [B, T] behind a cache with T free slots, and the cache."""
        x, (keys, values) = self._extend(tokens, cache)
        write = functools.partial(jax.lax.dynamic_update_slice_in_dim, start_index=cache.used)
        keys, values = write(cache.keys, keys, axis=3), write(cache.values, values, axis=3)
        filled = write(cache.filled, jnp.ones(tokens.shape, bool), axis=1)
        return x, Cache(keys, values, filled, cache.length + tokens.shape[1], cache.used + tokens.shape[1])

    def _extend(self, tokens: Array, cache: Cache) -> tuple[Array, KeysValues]:
        (rows, length), slots = tokens.shape, cache.filled.shape[1]
        positions = cache.length[:, None] + jnp.arange(length)
        of_past = jnp.broadcast_to(cache.filled[:, None], (rows, length, slots))
        of_new = jnp.broadcast_to(jnp.tril(jnp.ones((length, length), bool)), (rows, length, length))
        mask = jnp.concatenate([of_past, of_new], axis=-1)[:, None]
        return self._blocks(tokens, positions, mask, True, (cache.keys, cache.values))

    def _blocks(
        self, tokens: Array, positions: Array, mask: Maybe, deterministic: bool, past: Maybe = None, at: Maybe = None
    ) -> tuple[Array, Maybe]:
        """Returns the last hidden state and, with a `past` [L, ...], the new keys and values [L, ...]."""
        c = self.config
        x = self.embedding[tokens]
        if c.generation == "v04":
            x = x + self.position_embedding[positions]
        cos_sin = attention_lib.rope_cos_sin(positions, c) if c.generation == "v05" else None
        x = self._sharded(self.embedding_dropout(x, deterministic=deterministic))
        if c.scan:

            def layer(block: Block, x: Array, past: Maybe) -> tuple[Array, Maybe]:
                x, new = block(x, cos_sin, mask, deterministic, past)
                return self._sharded(x), new

            each = {"params": True, "dropout": True}  # a layer has its own draws
            x, new = nn.scan(layer, variable_axes={"params": 0}, split_rngs=each, length=c.layers)(self.block, x, past)
            return self.final_norm(x if at is None else gather_positions(x, at)), new
        of_layers = []
        for i, block in enumerate(self.block):
            of_layer, only = jax.tree.map(lambda leaf, i=i: leaf[i], past), None
            if at is not None and i == c.layers - 1:  # the last layer is read at these positions alone
                mask, only = attention_lib.query_mask(mask, at, tokens.shape[1]), at
            x, new = block(x, cos_sin, mask, deterministic, of_layer, only)
            x = self._sharded(x)
            of_layers.append(new)
        return self.final_norm(x), jax.tree.map(lambda *leaves: jnp.stack(leaves), *of_layers)

    def _sharded(self, x: Array) -> Array:
        return x if self.rows is None else jax.lax.with_sharding_constraint(x, self.rows)

    def head(self, hidden: Array, ids: Array | None = None) -> Array:
        """Returns float32 logits [..., V] of hidden states [..., D], padding masked, or [..., K] of tokens `ids`."""
        table = self.embedding if self.config.tied else self.unembedding
        rows = (table if ids is None else table[ids]).astype(hidden.dtype)
        logits = jnp.einsum("...d,vd->...v", hidden, rows, preferred_element_type=jnp.float32)
        if ids is not None:
            return logits
        return jnp.where(jnp.arange(self.config.padded_vocab) < self.config.vocab_size, logits, MASKED)

    def __call__(self, *args, **kwargs) -> Array:
        """Returns float32 logits [B, T, V] of tokens [B, T]; arguments are those of `hidden`."""
        return self.head(self.hidden(*args, **kwargs))


def init(config: ModelConfig, key: Array) -> dict:
    """Returns initial float32 parameters, the same numbers with `scan` and without; padding rows are zero."""
    unstacked = Transformer(dataclasses.replace(config, scan=False, attention="blocks"))
    params = unstacked.init(key, jnp.zeros((1, 1), jnp.int32))["params"]
    params = stack_blocks(params) if config.scan else params
    real = jnp.arange(config.padded_vocab)[:, None] < config.vocab_size
    return {**params, **{name: jnp.where(real, params[name], 0.0) for name in tables_of(config)}}


def tables_of(config: ModelConfig) -> tuple[str, ...]:
    """Returns the names of the parameters [V, D] with a row a token."""
    return ("embedding",) if config.tied else ("embedding", "unembedding")


def named_leaves(tree: Any) -> dict[str, Any]:
    """Returns name -> leaf ("block_0/attention/qkv/kernel") of a tree, in the order of `jax.tree.leaves`."""
    found, _ = jax.tree_util.tree_flatten_with_path(tree)
    return {jax.tree_util.keystr(path, simple=True, separator="/"): leaf for path, leaf in found}


def stack_blocks(params: dict) -> dict:
    """Returns the parameters of a model with `scan` (`blocks`) from those of one without (`block_0` …)."""
    names = [f"block_{i}" for i in range(sum(name.startswith("block_") for name in params))]
    rest = {name: tree for name, tree in params.items() if name not in names}
    return {**rest, "blocks": jax.tree.map(lambda *layers: jnp.stack(layers), *(params[name] for name in names))}


def unstack_blocks(params: dict) -> dict:
    """Returns the parameters of a model without `scan` from those of one with it."""
    rest = {name: tree for name, tree in params.items() if name != "blocks"}
    layers = jax.tree.leaves(params["blocks"])[0].shape[0]
    blocks = {f"block_{i}": jax.tree.map(lambda leaf, i=i: leaf[i], params["blocks"]) for i in range(layers)}
    return {**rest, **blocks}


def grow_vocabulary(params: dict, old: ModelConfig, new: ModelConfig, key: Array, start: str = "mean") -> dict:
    """Returns params with the rows of `new` in the embedding and an untied head, and with its form of blocks.

    Args:
      start: of the new rows. "mean": the mean of the old ones + N(0, 0.001²), an average token and not noise that the
        softmax must first unlearn. "random": as an untrained row.
    """
    params = stack_blocks(params) if new.scan else params
    padding = jnp.zeros((new.padded_vocab - new.vocab_size, new.width))
    for number, name in enumerate(tables_of(old)):
        rows = params[name][: old.vocab_size]
        own = jax.random.fold_in(key, number) if number else key
        noise = jax.random.normal(own, (new.vocab_size - old.vocab_size, new.width))
        added = INIT_STD * noise if start == "random" else rows.mean(axis=0) + 0.001 * noise
        params = {**params, name: jnp.concatenate([rows, added, padding])}
    return params
