"""Compiled programs are kept for who imports the library, unless they say otherwise."""

import os
import subprocess
import sys

import pytest

CODE = """
import jax
import jax.numpy as jnp

jax.jit(lambda x: x + 1)(1.0)
{code}
jax.jit(lambda x: jnp.sin(x) * 3)(1.0)
"""


ASKED = "from sdjax.parallel import use_compile_cache; use_compile_cache()"


@pytest.mark.parametrize(
    ("folder", "environment", "code"),
    [
        ("sdjax/compilations", {}, "from tests.weights.small import random_pipeline as r; r()"),
        (None, {"SDJAX_COMPILE_CACHE": "0"}, ASKED),
        ("own", {"JAX_COMPILATION_CACHE_DIR": "{}/own"}, ASKED),
        ("own", {}, "jax.config.update('jax_compilation_cache_dir', '{}/own');" + ASKED),
        (None, {}, ASKED + "; use_compile_cache(False)"),
    ],
    ids=["a pipeline", "off", "environment", "jax.config", "call"],
)
def test_programs_are_kept(tmp_path, folder, environment, code):
    known = {name: os.environ[name] for name in os.environ if not name.startswith("JAX_")}
    known |= {
        "XDG_CACHE_HOME": str(tmp_path), "JAX_PLATFORMS": "cpu",
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        "PYTHONPATH": os.pathsep.join(filter(None, sys.path)),
        **{name: value.format(tmp_path) for name, value in environment.items()},
    }  # fmt: skip
    code = CODE.format(code=code.format(tmp_path))
    subprocess.run([sys.executable, "-c", code], check=True, env=known)
    held = {path.parent for path in tmp_path.rglob("*-cache")}
    assert held == (set() if folder is None else {tmp_path / folder})
