"""Compiled programs are kept between processes, so that only the first start of a run waits for the compiler."""

import jax

from ghost_jax.paths import cache_dir


def use_compile_cache() -> None:
    """Points JAX's persistent compilation cache at the user's cache of this project."""
    jax.config.update("jax_compilation_cache_dir", str(cache_dir() / "xla"))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.5)
