"""Shapes of parameters are kept between runs, and traced anew for another network or code."""

import jax
import jax.numpy as jnp
import pytest

from sdjax.weights import kept_shapes
from sdjax.weights.kept_shapes import kept


@pytest.fixture
def asked(tmp_path, monkeypatch):
    """(a function of (width, dtype), what it was asked for)."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.delenv("SDJAX_COMPILE_CACHE", raising=False)
    calls = []

    @kept
    def shapes(width, dtype="float32"):
        calls.append((width, dtype))
        return {"a": {"b.c": jax.ShapeDtypeStruct((2, width), jnp.dtype(dtype))},
                "d": jax.ShapeDtypeStruct((), jnp.bfloat16)}

    return shapes, calls


def test_another_run_reads_them(asked, tmp_path):
    shapes, calls = asked
    first = shapes(3)
    assert shapes(3) is first and calls == [(3, "float32")]
    shapes.cache_clear()  # as in another process
    assert shapes(3) == first and len(calls) == 1
    assert shapes(4) != first and shapes(3, "float16") != first and len(calls) == 3
    assert len(list((tmp_path / "sdjax" / "shapes").iterdir())) == 3


@pytest.mark.parametrize("damage", ["", "[[1]]", "[[[], [1], \"float32\"]]", "{}}", "[3]",
                                    "[[[\"a\"], [1], \"no dtype\"]]"])
def test_a_damaged_file_is_written_anew(asked, tmp_path, damage):
    shapes, calls = asked
    first = shapes(3)
    (place,) = (tmp_path / "sdjax" / "shapes").iterdir()
    good = place.read_text()
    place.write_text(damage)
    shapes.cache_clear()
    assert shapes(3) == first and len(calls) == 2 and place.read_text() == good


def test_other_code_has_other_shapes(asked, monkeypatch):
    shapes, calls = asked
    shapes(3)
    shapes.cache_clear()
    monkeypatch.setattr(kept_shapes, "_code", lambda: "other")
    shapes(3)
    assert len(calls) == 2


def test_nothing_is_written_where_caches_are_off(asked, tmp_path, monkeypatch):
    shapes, calls = asked
    monkeypatch.setenv("SDJAX_COMPILE_CACHE", "0")
    assert shapes(3)["a"]["b.c"].shape == (2, 3) and not list(tmp_path.iterdir())
    (tmp_path / "file").write_text("")
    monkeypatch.delenv("SDJAX_COMPILE_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    assert shapes(5)["a"]["b.c"].shape == (2, 5)  # where it cannot be written
