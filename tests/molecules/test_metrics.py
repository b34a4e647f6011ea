"""Bonds, stability and what RDKit takes, on molecules whose bonds are known."""

import sys

import numpy as np
import pytest

from sdjax.errors import SdjaxError
from sdjax.molecules import Molecule, measured, pictures, smiles, write_sdf
from sdjax.molecules.bonds import bond_orders, stable_atoms
from sdjax.molecules.elements import NUMBERS
from sdjax.molecules.metrics import canonical, connected

from tests.molecules.small import MOLECULES


def molecule(symbols, places):
    return Molecule(np.array([NUMBERS[s] for s in symbols]), np.asarray(places, np.float32))


REAL = [molecule(symbols, places) for symbols, places, _ in MOLECULES]


def bare(one):
    return Molecule(one.numbers[one.numbers > 1], one.positions[one.numbers > 1])


def pair(first, second, distance):
    return molecule([first, second], [[0, 0, 0], [distance, 0, 0]])


@pytest.mark.parametrize(("first", "second", "distance", "order"), [
    ("C", "C", 1.64, 1), ("C", "C", 1.639, 1), ("C", "C", 1.641, 0), ("C", "C", 1.389, 2),
    ("C", "C", 1.391, 1), ("C", "C", 1.229, 3), ("C", "C", 1.231, 2), ("C", "N", 1.189, 3),
    ("N", "O", 1.259, 2), ("O", "O", 1.1, 2), ("F", "F", 0.5, 1), ("H", "H", 0.839, 1),
    ("H", "H", 0.841, 0), ("H", "F", 1.019, 1), ("O", "F", 1.519, 1),
])  # fmt: skip
def test_orders_are_those_of_the_table(first, second, distance, order):
    distance -= 1e-6 if distance == 1.64 else 0
    assert bond_orders(pair(first, second, distance))[0, 1] == order
    assert bond_orders(pair(second, first, distance))[1, 0] == order


def test_real_molecules_are_stable():
    for one in REAL:
        assert stable_atoms(one).all()
        assert stable_atoms(bare(one), hydrogens=False).all()
    broken = Molecule(REAL[0].numbers[1:], REAL[0].positions[1:])
    assert not stable_atoms(broken).any()
    five = molecule("CCCCCC", [[0, 0, 0], [1.5, 0, 0], [-1.5, 0, 0], [0, 1.5, 0], [0, -1.5, 0],
                               [0, 0, 1.5]])
    assert list(stable_atoms(five, hydrogens=False)) == [False] + [True] * 5


def test_measures_count_what_they_say():
    pytest.importorskip("rdkit")
    apart = molecule("CO", [[0, 0, 0], [4, 0, 0]])  # in two pieces, of which RDKit takes both
    five = molecule("CFFFFF", [[0, 0, 0], [1.4, 0, 0], [-1.4, 0, 0], [0, 1.4, 0], [0, -1.4, 0],
                               [0, 0, 1.4]])
    known = canonical(["C", "C=C"])
    found = measured([*map(bare, REAL), bare(REAL[0]), apart, five], False, known)
    assert [smiles(bare(one)) for one in REAL] == ["C", "O", "C=C", "C#N"]
    assert [smiles(one) for one in REAL] == ["C", "O", "C=C", "C#N"]
    assert found.count == 7 and found.validity == 6 / 7
    assert found.uniqueness == 4 / 6 and found.valid_and_unique == pytest.approx(4 / 7)
    assert found.novelty == 2 / 4 and found.connectedness == 6 / 7
    assert found.molecule_stability == 6 / 7
    assert found.atom_stability == 1 - 1 / (sum(len(bare(one).numbers) for one in REAL) + 9)


def test_connection_goes_over_any_number_of_bonds():
    chain = molecule("C" * 6, [[1.5 * i, 0, 0] for i in range(6)])
    assert connected(chain)
    assert not connected(molecule("C" * 6, [[1.5 * i + 3 * (i > 2), 0, 0] for i in range(6)]))


def test_an_unknown_element_is_one_line():
    one = Molecule(np.array([14, 1]), np.zeros((2, 3)))
    with pytest.raises(SdjaxError, match="element Si has no bond lengths here: expected H, C, N"):
        measured([one], True)
    with pytest.raises(SdjaxError, match="unknown element 99"):
        bond_orders(Molecule(np.array([99]), np.zeros((1, 3))))
    with pytest.raises(SdjaxError, match="no molecules"):
        measured([], True)


def test_files_are_read_by_rdkit(tmp_path):
    chem = pytest.importorskip("rdkit.Chem")
    write_sdf(tmp_path / "some.sdf", REAL, [{"seed": i} for i in range(4)])
    read = list(chem.SDMolSupplier(str(tmp_path / "some.sdf"), removeHs=False))
    assert [chem.MolToSmiles(chem.RemoveHs(one)) for one in read] == [m[2] for m in MOLECULES]
    assert [one.GetProp("seed") for one in read] == list("0123")
    for one, given in zip(read, REAL):
        np.testing.assert_allclose(
            one.GetConformer().GetPositions(), given.positions, atol=5.1e-5)
    with pytest.raises(SdjaxError, match="cannot write"):
        write_sdf(tmp_path / "none" / "some.sdf", REAL)


def test_pictures_have_their_smiles():
    pytest.importorskip("rdkit")
    found, captions = pictures([bare(REAL[2]), molecule("FFF", [[0, 0, 0], [1, 0, 0], [2, 0, 0]])])
    assert captions == ["C=C", "not valid"]
    assert found.shape == (2, 160, 160, 3) and found[0].min() < 100 and found[1].min() == 255


def test_what_needs_rdkit_says_so(monkeypatch):
    for name in ("rdkit", "rdkit.Chem"):
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(SdjaxError, match=r'needs rdkit.*pip install "sdjax\[molecules\]"'):
        smiles(REAL[0])


