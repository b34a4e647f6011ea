"""Peak memory of loading: little more than the parameters in the dtype asked for."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

import sdjax
from sdjax.weights import parts
from sdjax.weights.folder import write_part
from sdjax.weights.names import state_from_params
from sdjax.weights.tensors import LazyTensor
from tests.weights.small import UNET_SD1, random_pipeline

WIDE = {**UNET_SD1, "block_out_channels": [256, 448], "layers_per_block": 2,
        "cross_attention_dim": 24, "attention_head_dim": 8, "norm_num_groups": 32}  # fmt: skip
LARGEST = 1.2  # of the parameters
# A first load brings in the code; then the peak starts anew.
PROGRAM = """
import ctypes, json, pathlib, sys
import jax
import sdjax

def resident(field):
    lines = pathlib.Path("/proc/self/status").read_text().splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith(field))

def load(path, dtype):
    if path.endswith(".bin"):
        return sdjax.UNet.from_pretrained(pathlib.Path(path).parent, dtype=dtype)[1]
    return sdjax.StableDiffusion.from_pretrained(path, dtype=dtype).params

small, path, dtype = sys.argv[1:]
load(small, dtype)
ctypes.CDLL(None).malloc_trim(0)
pathlib.Path("/proc/self/clear_refs").write_text("5")
before = resident("VmRSS")
params = jax.block_until_ready(load(path, dtype))
held = sum(leaf.nbytes for leaf in jax.tree.leaves(params))
print(json.dumps([held, resident("VmHWM") - before]))
"""

pytestmark = pytest.mark.skipif(
    not Path("/proc/self/clear_refs").exists(), reason="the system does not tell a process's peak"
)


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """A small pipeline; the same with a U-Net of 200 MB; and that U-Net pickled."""
    small, wide, pickled = (tmp_path_factory.mktemp(name) for name in ("small", "wide", "pickled"))
    for folder in (small, wide):
        random_pipeline().save_pretrained(folder)
    config = sdjax.UNetConfig.from_dict(WIDE)
    state = {
        key: LazyTensor(tensor.shape, tensor.dtype, lambda shape=tensor.shape: np.ones(shape, "f4"))
        for key, tensor in state_from_params(parts.unet_shapes(config)).items()
    }
    assert 150e6 < 4 * sum(int(np.prod(tensor.shape)) for tensor in state.values()) < 300e6
    write_part(wide / "unet", config.to_dict(), state)
    (pickled / "config.json").write_text((wide / "unet" / "config.json").read_text())
    tensors = {key: torch.ones(tensor.shape) for key, tensor in state.items()}
    torch.save(tensors, pickled / "diffusion_pytorch_model.bin")
    return small, wide, pickled / "diffusion_pytorch_model.bin"


@pytest.mark.parametrize(
    ("pickled", "dtype"),
    [(False, "float32"), (False, "bfloat16"), (True, "bfloat16")],
    ids=["safetensors", "safetensors-half", "pickled-half"],
)
def test_peak_is_little_more_than_the_parameters(folders, pickled, dtype):
    small, *large = folders
    environment = os.environ | {"JAX_NUM_CPU_DEVICES": "1"}
    run = subprocess.run(
        [sys.executable, "-c", PROGRAM, small, large[pickled], dtype],
        env=environment | {"PYTHONPATH": str(Path(sdjax.__file__).parents[1])},
        capture_output=True, text=True, timeout=300, check=True,
    )  # fmt: skip
    held, peak = json.loads(run.stdout)
    assert held > 150e6 * (1 if dtype == "float32" else 0.5)
    assert peak <= LARGEST * held
