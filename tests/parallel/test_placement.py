"""Placements of the training step: the same numbers, cut arrays."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from jax.sharding import PartitionSpec

from sdjax.errors import SdjaxError
from sdjax.parallel import COPIES, Placement, Sharded
from sdjax.parallel.rules import spec

ROOT = Path(__file__).parents[2]
NAMES = ("copies", "data", "fsdp", "data x tensor", "fsdp x tensor")


def test_names_say_how_parameters_are_cut():
    block = "opt_state/0/mu/unet/down_blocks.0/attentions.0/transformer_blocks.0"
    assert spec(f"{block}/attn1/to_q/kernel", (320, 320), 1, 2) == PartitionSpec(None, "tensor")
    assert spec(f"{block}/attn1/to_out.0/kernel", (320, 320), 4, 2) == (
        PartitionSpec("tensor", "fsdp"))
    assert spec(f"{block}/ff/net.0/proj/kernel", (320, 2560), 4, 2) == (
        PartitionSpec("fsdp", "tensor"))
    assert spec("unet/conv_in/kernel", (3, 3, 4, 320), 4, 2) == (
        PartitionSpec(None, None, None, "fsdp"))
    assert spec("unet/resnets.0/conv1/kernel", (3, 3, 320, 640), 4, 2) == (
        PartitionSpec(None, None, "fsdp", "tensor"))
    assert spec("text_encoder/layers.0/mlp/fc2/kernel", (3072, 768), 3, 1) == (
        PartitionSpec("fsdp", None))
    assert spec("unet/norm/scale", (320,), 4, 2) == PartitionSpec()
    assert spec("unet/conv_out/kernel", (3, 3, 5, 7), 4, 2) == PartitionSpec(*[None] * 4)


@pytest.mark.parametrize(("placement", "shape"), [
    (Placement(), None), (Placement(fsdp=2), (1, 2, 1)), (Placement(fsdp=-1), (1, 2, 1)),
    (Placement(tensor=2), (1, 1, 2)), (Placement(fsdp=-1, tensor=2), (1, 1, 2)),
])
def test_what_is_asked_for_becomes_a_mesh(placement, shape):
    place = placement.laid_out()
    if shape is None:
        assert place is COPIES
    else:
        assert tuple(place.mesh.shape.values()) == shape


@pytest.mark.parametrize(("values", "words"), [
    ({"fsdp": 3}, "fsdp 3 times tensor 1 must divide the 2 devices"),
    ({"fsdp": 2, "tensor": 2}, "fsdp 2 times tensor 2 must divide the 2 devices"),
    ({"fsdp": -1, "tensor": 4}, "fsdp -1 times tensor 4 must divide the 2 devices"),
    ({"fsdp": 0}, "placement.fsdp must be at least 1, or -1"),
    ({"tensor": 0}, "placement.tensor must be at least 1"),
])
def test_a_placement_that_does_not_fit_is_refused(values, words):
    with pytest.raises(SdjaxError, match=words):
        Placement(**values).laid_out()


def test_uneven_batches_are_refused():
    with pytest.raises(SdjaxError, match="batch of 7 cannot be split over 2 devices"):
        Sharded.over(2, 1).batch({"x": np.zeros((7, 2))}, (1, 1))


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """{placement: parameters after ten steps, …} on four devices, in a process of its own."""
    path = tmp_path_factory.mktemp("steps") / "made.npz"
    environment = {**os.environ, "PYTHONPATH": str(ROOT),
                   "XLA_FLAGS": "--xla_backend_optimization_level=0"}
    environment.pop("JAX_NUM_CPU_DEVICES", None)
    command = [sys.executable, "-m", "tests.parallel.steps", str(path), *NAMES]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, cwd=ROOT,
                          timeout=200)
    assert done.returncode == 0, done.stderr
    return dict(np.load(path)), json.loads(done.stdout.splitlines()[-1])


@pytest.mark.parametrize("name", NAMES)
def test_all_placements_make_the_same_ten_steps(made, name):
    arrays, _ = made
    wanted = {key: value for key, value in arrays.items() if key.startswith("one/")}
    assert wanted
    moved = max(np.abs(value - arrays[key.replace("one/", "begin/", 1)]).max()
                for key, value in wanted.items())
    assert moved > 1e-3  # training has changed something
    for key, value in wanted.items():
        got = arrays[key.replace("one/", f"{name}/", 1)]
        np.testing.assert_allclose(got, value, rtol=0, atol=1e-5, err_msg=key)


def test_parameters_optimizer_and_ema_are_really_cut(made):
    """Bytes on each device, against those of whole copies."""
    _, held = made
    whole = held["copies"]
    assert whole["params"] == whole["ema"] and held["data"] == whole
    for name in ("fsdp", "data x tensor"):
        assert held[name]["opt_state"] < 2.1 * held[name]["params"]
        assert held[name]["params"] == held[name]["ema"]
    for part in whole:
        assert held["fsdp"][part] < 0.35 * whole[part]
        assert held["data x tensor"][part] < 0.55 * whole[part]
