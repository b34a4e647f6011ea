"""A sampler's table, tokenizers and settings as plain values for JSON."""

from typing import Any

import numpy as np

from sdjax.diffusion.tables import EVALUATE, SKIP, Table
from sdjax.errors import SdjaxError
from sdjax.text.vocabulary import byte_symbols


def rows_of(table: Table) -> dict[str, Any]:
    """A sampler's table without the rows that do nothing, in the words of `sdjax.diffusion.tables`.

    A row has a timestep, or null where it evaluates nothing and adds its noise alone. `x` and `y`
    are over (x, y, D, D₁, D₂, D₃). The numbers are float32's, exactly.
    """
    rows = table.rows
    if np.any(rows.spread):
        raise SdjaxError("export takes no sampler that needs a learned variance: choose another")
    made = []
    for i, kind in enumerate(np.asarray(rows.kind)):
        if kind == SKIP:
            continue
        made.append({
            "timestep": float(rows.timestep[i]) if kind == EVALUATE else None,
            "input_scale": float(rows.input_scale[i]),
            "x_0": _numbers(rows.x_0[i]),
            "derivative": _numbers(rows.derivative[i]),
            "x": _numbers(rows.update[i, 0]),
            "y": _numbers(rows.update[i, 1]),
            "noise": float(rows.noise[i]),
            "remember": bool(rows.remember[i]),
        })  # fmt: skip
    return {
        "initial_scale": float(table.initial_scale),
        "clip": float(table.clip) if np.isfinite(table.clip) else None,
        "threshold": None if table.threshold is None else _numbers(table.threshold),
        "rows": made,
    }


def tokenizer_of(tokenizer) -> dict[str, Any]:
    """What `sdjax.export.words` reads of a `Tokenizer`."""
    if tokenizer.learned:
        raise SdjaxError(
            f"export takes no learned words, and this tokenizer knows {tokenizer.learned[0]!r}: "
            "export the model without them"
        )
    return {
        "length": tokenizer.max_length,
        "pad": tokenizer.pad_id,
        "symbols": _symbols(),
        "vocabulary": tokenizer.vocabulary,
        "merges": [" ".join(pair) for pair in tokenizer.merges],
    }


def _symbols() -> str:
    """The character of each byte, in the bytes' order: its own or, where it has none, the next of
    those moved up."""
    own = [symbol for symbol in byte_symbols() if ord(symbol) < 0x100]
    moved = iter(byte_symbols()[len(own) :])
    return "".join(chr(byte) if chr(byte) in own else next(moved) for byte in range(0x100))


def _numbers(array) -> list[float]:
    return [float(value) for value in np.asarray(array)]
