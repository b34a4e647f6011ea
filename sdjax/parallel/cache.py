"""Compiled programs kept between runs."""

import jax
from jax.experimental.compilation_cache import compilation_cache

from sdjax.caches import cache_folder


def use_compile_cache(folder=None):
    """Keep compiled programs between runs in `folder` (default: ~/.cache/sdjax/compilations).

    A pipeline and a training do so by themselves. Without a folder, whatever the user has said
    stays: a folder in JAX_COMPILATION_CACHE_DIR or `jax.config`, JAX_ENABLE_COMPILATION_CACHE, or
    SDJAX_COMPILE_CACHE=0 for none. `folder=False` turns it off for this process.
    """
    if folder is False:
        jax.config.update("jax_enable_compilation_cache", False)
        compilation_cache.reset_cache()
        return
    if folder is None:
        folder = cache_folder("compilations")
        if (
            jax.config.jax_compilation_cache_dir
            or not jax.config.jax_enable_compilation_cache
            or folder is None
        ):
            return
    jax.config.update("jax_compilation_cache_dir", str(folder))
    # What was compiled before has settled that there is none.
    compilation_cache.reset_cache()
