"""`sample` with a refiner and a second pass: the picture that `generate` makes."""

import numpy as np
import pytest
from PIL import Image

import main
import sdjax
from tests.weights.small import random_pipeline


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("model")
    random_pipeline().save_pretrained(path)
    return path


def test_the_command_refines_and_enlarges(folder, tmp_path):
    options = ["--steps", "4", "--refiner", str(folder), "--handoff", "0.6", "--hires", "1.5"]
    options += ["--hires-by", "lanczos", "--hires-strength", "0.75", "--hires-steps", "8"]
    arguments = ["--prompt", "rocket", "--model", str(folder), "--out", str(tmp_path), *options]
    assert main.main(["sample", *arguments]) == 0
    made = Image.open(tmp_path / "00000.png")
    model = sdjax.StableDiffusion.from_pretrained(folder)
    (expected,) = model.generate(
        "rocket", steps=4, refiner=model, handoff=0.6, hires=1.5, hires_by="lanczos",
        hires_strength=0.75, hires_steps=8,
    )  # fmt: skip
    np.testing.assert_array_equal(np.asarray(made), np.asarray(expected))
    assert made.text["refiner"] == str(folder)


def test_what_goes_with_a_refiner_alone_is_refused(folder, tmp_path, capsys):
    start = ["sample", "--prompt", "rocket", "--model", str(folder), "--out", str(tmp_path)]
    assert main.main([*start, "--handoff", "0.5"]) == 2
    assert "handoff is where a refiner goes on" in capsys.readouterr().err
