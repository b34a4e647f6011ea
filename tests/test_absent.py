"""Programs compiled for TPUs that are not there."""

import importlib.util

import jax
import jax.numpy as jnp
import pytest

import sdjax
from sdjax import absent

NEEDS = pytest.mark.skipif(importlib.util.find_spec("libtpu") is None, reason="needs libtpu")


def test_a_slice_that_cannot_be_compiled_for():
    with pytest.raises(sdjax.SdjaxError, match=r"cannot compile for v5e:7x9: .*sdjax\[tpu\]"):
        absent.devices("v5e:7x9")


@NEEDS
def test_cost_of_a_product():
    """The compiler's figures for a product of which they are known."""
    device = absent.devices("v5e:2x2")[0]
    n = 1024
    shape = jax.ShapeDtypeStruct((n, n), jnp.bfloat16)
    found = absent.cost(lambda a, b: a @ b, shape, shape, device=device)
    assert found.flops == 2 * n**3
    assert (found.arguments, found.outputs) == (2 * 2 * n * n, 2 * n * n)
    assert found.memory == 3 * 2 * n * n + found.temporary
