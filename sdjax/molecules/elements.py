"""Elements by their symbols, and the package that knows chemistry."""

import importlib

from sdjax.errors import SdjaxError

SYMBOLS = (
    "H He Li Be B C N O F Ne Na Mg Al Si P S Cl Ar K Ca Sc Ti V Cr Mn Fe Co Ni Cu Zn Ga Ge As Se "
    "Br Kr Rb Sr Y Zr Nb Mo Tc Ru Rh Pd Ag Cd In Sn Sb Te I Xe"
).split()
"""Of the atomic numbers from 1 on."""
VALENCES = {"H": 1, "C": 4, "N": 3, "O": 2, "F": 1}
"""Bonds of a stable atom of the elements of QM9."""
NUMBERS = {symbol: number for number, symbol in enumerate(SYMBOLS, 1)}


def number_of(symbol: str) -> int:
    """The atomic number of an element; SdjaxError for what is none."""
    if symbol not in NUMBERS:
        raise SdjaxError(f"unknown element {symbol!r}: expected a symbol such as C, N or O")
    return NUMBERS[symbol]


def symbol_of(number: int) -> str:
    """The symbol of an atomic number; SdjaxError for what is none."""
    if not 1 <= number <= len(SYMBOLS):
        raise SdjaxError(f"unknown element {number}: expected an atomic number in 1 … 54")
    return SYMBOLS[number - 1]


def check_measurable(symbols) -> None:
    """SdjaxError for an element whose bonds are not in the table."""
    for symbol in symbols:
        if symbol not in VALENCES:
            raise SdjaxError(
                f"element {symbol} has no bond lengths here: expected {', '.join(VALENCES)}, the "
                "elements of QM9"
            )


def chemistry(name: str = "rdkit"):
    """A module of RDKit, or of tblite; SdjaxError where it is missing."""
    try:
        return importlib.import_module(name)
    except ImportError as error:
        package = name.partition(".")[0]
        raise SdjaxError(
            f'this needs {package}, which is not installed: pip install "sdjax[molecules]"'
        ) from error
