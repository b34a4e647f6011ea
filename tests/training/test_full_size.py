"""Fine-tuning at published sizes: one step of SD1.5, and the memory of SDXL's as XLA plans it."""

import json
import os
import subprocess
import sys

import numpy as np
import pytest

pytestmark = pytest.mark.full


def told(*arguments):
    environment = {**os.environ, "JAX_NUM_CPU_DEVICES": "1"}
    done = subprocess.run([sys.executable, "-m", "tests.training.full_size", *arguments],
                          env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def test_a_lora_step_of_sd15_fits_into_a_small_machine():
    found = told("sd15", "256")
    assert np.isfinite(found["loss"]) and found["grad_norm"] > 0
    assert found["peak_GB"] < 12


def test_the_gradient_of_an_sdxl_lora_is_planned_from_shapes_alone():
    found = told("sdxl", "512", "compile")
    assert found["unet_parameters"] == 2_567_463_684
    assert 13.5 < found["arguments_GB"] < 14  # the networks in float32
    assert found["temporary_GB"] < 15  # the adapted U-Net's weights among them
