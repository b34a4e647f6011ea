"""The same images on any number of devices; a process has as many as it began with."""

import os
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest

from tests.weights.small import random_pipeline

ROOT = Path(__file__).parents[2]


def drawn():
    """A picture alone, whose halves may go to two devices, and five repainted ones, two at once."""
    model, random = random_pipeline(), np.random.RandomState(0)
    options = {"steps": 3, "sampler": "euler_a", "output": "numpy", "progress": False}
    mask = np.zeros((16, 16), np.float32)
    mask[4:, :10] = 1
    several = model.generate(
        "rocket", seed=[9, 3, 2**40, 1, 5], count=5, batch_size=2, mask=mask, paste=False,
        image=list(np.float32(random.uniform(-1, 1, (5, 16, 16, 3)))),
        strength=[0.5, 1.0, 0.9, 0.4, 0.7], guidance_scale=[2.0, 7.5, 1.0, 3.0, 4.0], **options,
    )  # fmt: skip
    return {"alone": model.generate("red apple", seed=7, **options), "several": several}


@pytest.mark.parametrize("devices", [3, pytest.param(1, marks=pytest.mark.full)])
def test_images_are_the_same(devices, tmp_path):
    path = tmp_path / "drawn.npz"
    environment = os.environ | {"JAX_NUM_CPU_DEVICES": str(devices), "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-m", "tests.pipeline.test_devices", str(path)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, cwd=ROOT,
                          timeout=400)  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == [str(devices)] and jax.local_device_count() == 2
    there, here = np.load(path), drawn()
    for name in here:
        np.testing.assert_allclose(there[name], here[name], atol=2e-5)


if __name__ == "__main__":
    np.savez(sys.argv[1], **drawn())
    print(jax.local_device_count())
