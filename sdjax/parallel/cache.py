"""Compiled programs kept between runs."""

import os
from pathlib import Path

import jax


def use_compile_cache(folder=None):
    """Keep compiled programs between runs in `folder` (default: ~/.cache/sdjax/compilations).

    JAX_COMPILATION_CACHE_DIR, where set, is left in charge.
    """
    if folder is None:
        if os.environ.get("JAX_COMPILATION_CACHE_DIR"):
            return
        cache = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
        folder = Path(cache) / "sdjax" / "compilations"
    jax.config.update("jax_compilation_cache_dir", str(folder))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 1.0)
