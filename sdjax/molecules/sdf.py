"""Molecules as SDF files (CTfile V2000), their bonds by the table of lengths."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from sdjax.errors import SdjaxError
from sdjax.folders import check_local
from sdjax.molecules.bonds import bond_orders
from sdjax.molecules.features import Molecule


def sdf_text(molecule: Molecule, name: str = "", notes: Mapping[str, object] = {}) -> str:
    """One molecule's entry. notes: what is told of it, as fields of data."""
    orders = np.triu(bond_orders(molecule))
    pairs = np.argwhere(orders)
    lines = [name, "  sdjax", "", f"{len(molecule.numbers):3d}{len(pairs):3d}  0  0  0  0  0  0  0"
             "  0999 V2000"]
    for symbol, (x, y, z) in zip(molecule.symbols, molecule.positions, strict=True):
        lines.append(f"{x:10.4f}{y:10.4f}{z:10.4f} {symbol:<3} 0  0  0  0  0  0  0  0  0  0  0  0")
    lines += [f"{i + 1:3d}{j + 1:3d}{orders[i, j]:3d}  0" for i, j in pairs]
    lines.append("M  END")
    for key, value in notes.items():
        lines += [f"> <{key}>", str(value), ""]
    return "\n".join([*lines, "$$$$", ""])


def write_sdf(
    path, molecules: Sequence[Molecule], notes: Sequence[Mapping[str, object]] | None = None
) -> None:
    """Writes molecules into one file, with notes, one mapping a molecule, where given."""
    check_local(path)
    notes = [{}] * len(molecules) if notes is None else notes
    texts = [
        sdf_text(molecule, f"{Path(path).stem} {i}", own)
        for i, (molecule, own) in enumerate(zip(molecules, notes, strict=True))
    ]
    try:
        Path(path).write_text("".join(texts), encoding="utf-8")
    except OSError as error:
        raise SdjaxError(f"cannot write {path}: {error.strerror}") from error
