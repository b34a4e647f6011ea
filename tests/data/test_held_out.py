"""The choice of what is kept out of training."""

import numpy as np
import pytest

from sdjax.data.held_out import held_out
from sdjax.errors import SdjaxError


def test_names_choose_and_nothing_else():
    names = [f"{i}.png" for i in range(40)]
    out = held_out(names, 0.1)
    assert out.sum() == 4
    order = np.random.default_rng(0).permutation(40)
    np.testing.assert_array_equal(held_out([names[i] for i in order], 0.1), out[order])
    kept = {name for name, own in zip(names, out) if own}
    fewer = [name for name, own in zip(names, out) if own or name < "3"]
    again = {name for name, own in zip(fewer, held_out(fewer, 4 / len(fewer))) if own}
    assert again == kept


def test_items_of_one_picture_go_together_and_one_is_kept_at_least():
    out = held_out(["a", "b", "a", "c"], 0.01)
    assert out[0] == out[2] and len({n for n, own in zip("abac", out) if own}) == 1
    with pytest.raises(SdjaxError, match="leaves none to train on"):
        held_out(["a", "a"], 0.5)
