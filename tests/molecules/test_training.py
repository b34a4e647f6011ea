"""Recipes of molecules: a whole one by the command line, and one that is interrupted."""

import dataclasses
import json

import jax
import numpy as np
import pytest

import main
import sdjax
from sdjax.data import DataConfig
from sdjax.errors import SdjaxError
from sdjax.molecules.data import read_qm9
from sdjax.training import MoleculeRun, Recipe, train
from sdjax.training.recipes.molecules import buckets_of, condition_of, training_set
from tests.molecules.small import small_run, write_lines


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    return f"qm9:{write_lines(tmp_path_factory.mktemp('qm9'))}"


def recipe(source, **fields):
    return Recipe(data=DataConfig(source=source), diffusion=small_run(**fields))


@pytest.fixture(scope="module")
def trained(source, tmp_path_factory):
    folder = tmp_path_factory.mktemp("run")
    assert train(recipe(source), folder)
    return folder


def weights(folder):
    return sdjax.MoleculeDiffusion.from_pretrained(folder / "model").params


def test_an_interrupted_run_is_the_uninterrupted_one(source, trained, tmp_path, capsys):
    assert train(recipe(source, steps=2), tmp_path)
    assert train(recipe(source), tmp_path)
    assert "going on after step 2" in capsys.readouterr().out
    jax.tree.map(np.testing.assert_array_equal, weights(trained), weights(tmp_path))


def test_the_result_samples_and_is_measured(trained, source, tmp_path, capsys):
    """By the same commands as any other model."""
    pytest.importorskip("rdkit")
    model, out = str(trained / "model"), tmp_path / "made"
    arguments = ["--model", model, "--steps", "3", "--sampler", "ddim", "--batch-size", "2"]
    assert main.main(["sample", *arguments, "--count", "2", "--out", str(out)]) == 0
    assert sorted(path.name for path in out.iterdir()) == [
        "00000-sheet.png", "00000.sdf", "00001.sdf"]
    assert main.main(["sample", *arguments, "--no-pictures", "--out", str(out)]) == 0
    assert (out / "00002.sdf").is_file()
    assert main.main(["evaluate", "molecules", *arguments, "--count", "4", "--data", source,
                      "--out", str(tmp_path)]) == 0
    found = json.loads((tmp_path / "molecules.json").read_text())
    assert found["generated"]["count"] == 4 and found["data"]["validity"] == 1.0
    assert found["data"]["molecule_stability"] == 1.0
    capsys.readouterr()
    assert main.main(["sample", "--model", model, "--prompt", "water"]) == 2
    assert "takes no --prompt" in capsys.readouterr().err


def test_buckets_hold_what_is_as_large_as_they(source):
    run = small_run(buckets=(3, 5), condition="dipole")
    found = training_set(run, source, "all")
    assert len(found) == 16 and sorted(set(found.sizes)) == [3, 5, 6]
    condition = condition_of(run, found)
    sets = buckets_of(run, found, condition)
    assert [arrays["x"].shape for arrays in sets] == [(8, 3, 9), (4, 5, 9), (4, 6, 9)]
    told = np.concatenate([arrays["context"] for arrays in sets])
    values = read_qm9(source).properties["dipole"]
    np.testing.assert_allclose(np.sort(told[:, 0] * condition.deviation + condition.mean),
                               np.sort(values), atol=1e-5)
    assert np.abs(told).mean() == pytest.approx(1, abs=1e-5)


def test_a_run_with_buckets_and_a_property(source, tmp_path):
    run = recipe(source, buckets=(3,), condition="gap", hydrogens=False, steps=2)
    assert train(dataclasses.replace(run, export_dtype="float16"), tmp_path)
    model = sdjax.MoleculeDiffusion.from_pretrained(tmp_path / "model")
    assert model.condition.name == "gap" and model.largest == 2
    assert sum(model.sizes.values()) == 12


@pytest.mark.parametrize(("make", "said"), [
    (lambda source: Recipe(diffusion=small_run()), 'data.source of "qm9"'),
    (lambda source: recipe(source, buckets=(5, 3)), "rising numbers"),
    (lambda source: recipe(source, max_heavy_atoms=0), "max_heavy_atoms"),
    (lambda source: Recipe(data=DataConfig(source=source, flip=True), diffusion=small_run()),
     "data.flip"),
    (lambda source: Recipe(data=DataConfig(source=source, image_size=32)),
     "qm9 has molecules, not pictures"),
    (lambda source: Recipe(data=DataConfig(source=source, split="all of it"),
                           diffusion=small_run()), "has the splits train, valid, test, all"),
    (lambda source: recipe(source, condition="mass"), "condition must be one of"),
])  # fmt: skip
def test_recipes_that_do_not_fit(source, tmp_path, make, said):
    with pytest.raises(SdjaxError, match=said):
        train(make(source), tmp_path)


def test_a_plan_is_made(capsys):
    assert main.main(["plan", "--config", "molecules", "--topology", "h100:8"]) == 0
    assert isinstance(sdjax.training.load_config("molecules").diffusion, MoleculeRun)
    assert "64" in capsys.readouterr().out
