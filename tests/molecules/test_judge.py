"""What GFN2-xTB says of molecules, beside the DFT of QM9."""

import importlib.util

import numpy as np
import pytest

from sdjax.errors import SdjaxError
from sdjax.molecules import read_qm9
from sdjax.molecules.features import Molecule
from sdjax.molecules.judge import JUDGED, computed, with_hydrogens

if missing := [name for name in ("tblite", "qm9pack") if importlib.util.find_spec(name) is None]:
    pytest.skip(f"needs {missing[0]}", allow_module_level=True)
WATER = Molecule(np.array([8, 1, 1]), np.float32(
    [[0, 0, 0.1173], [0, 0.7572, -0.4692], [0, -0.7572, -0.4692]]))


def test_it_ranks_molecules_as_dft_does():
    """Of some of QM9 its dipoles are those of B3LYP, and its levels lie on a line with theirs."""
    data = read_qm9(every=5000)
    assert len(data) > 20
    for name, least in (("dipole", 0.95), ("homo", 0.8), ("lumo", 0.9), ("gap", 0.9)):
        found = [computed(Molecule(own[own > 0].astype(int), places[own > 0]), name)
                 for own, places in zip(data.numbers, data.positions, strict=True)]
        assert np.isfinite(found).all()
        assert np.corrcoef(found, data.properties[name])[0, 1] > least, name
        if name == "dipole":
            assert np.abs(found - data.properties[name]).mean() < 0.5  # debye


def test_a_molecule_that_is_turned_has_the_same_properties():
    angle = 1.1
    turn = np.array([[np.cos(angle), -np.sin(angle), 0], [np.sin(angle), np.cos(angle), 0],
                     [0, 0, 1]])
    turned = WATER._replace(positions=np.float32(WATER.positions @ turn + [1, 2, 3]))
    values = {name: computed(WATER, name) for name in JUDGED}
    for name, value in values.items():
        assert computed(turned, name) == pytest.approx(value, rel=1e-4)
    assert values["gap"] == pytest.approx(values["lumo"] - values["homo"])


def test_hydrogens_are_put_where_bonds_want_them():
    whole = with_hydrogens(Molecule(np.array([6]), np.zeros((1, 3), np.float32)))
    assert whole.numbers.tolist() == [6, 1, 1, 1, 1]
    lengths = np.linalg.norm(whole.positions[1:] - whole.positions[0], axis=1)
    np.testing.assert_allclose(lengths, 1.09, atol=0.01)
    assert np.abs(whole.positions[0]).max() < 1e-3  # what was there stays there
    assert with_hydrogens(WATER) is WATER


def test_what_is_no_molecule_has_no_properties():
    three = Molecule(np.array([9, 9, 9]), np.float32([[0, 0, 0], [1.4, 0, 0], [2.8, 0, 0]]))
    assert np.isnan(computed(three, "gap"))
    with pytest.raises(SdjaxError, match="the judge knows dipole, homo, lumo, gap, not 'mass'"):
        computed(WATER, "mass")
