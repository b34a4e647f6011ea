"""What no memory holds is refused before anything is compiled, and what turns out too much later."""

import jax.numpy as jnp
import numpy as np
import pytest

import sdjax
from sdjax import room
from sdjax.pipeline import run
from sdjax.pipeline.compiled import places
from sdjax.pipeline.plans import room as pipeline_room
from sdjax.pipeline.plans.request import Request
from sdjax.training.loop import fit as loop
from sdjax.training.loop.config import RunConfig
from tests.weights.small import random_pipeline

GIB = 2**30


@pytest.fixture(scope="module")
def model():
    return random_pipeline()


@pytest.fixture
def nothing_compiled(monkeypatch):
    def compiled(*arguments, **names):
        raise AssertionError("a program was compiled")

    monkeypatch.setattr(places, "compiled", compiled)


def refusal(model, **arguments):
    with pytest.raises(sdjax.SdjaxError) as refused:
        model.generate("red apple", steps=1, **arguments)
    assert "\n" not in str(refused.value)
    return str(refused.value)


def test_sizes_that_no_memory_holds(model, nothing_compiled):
    line = refusal(model, height=2**20, width=2**20)
    # 2 arrays of 2^40 places, 16 channels of 4 bytes each.
    assert "pictures of 1048576x1048576 pixels" in line
    assert f"{2 * 2**40 * 16 * 4 / GIB:,.1f} GiB" in line
    assert "pictures of" in refusal(model, height=10**12, width=10**12, output="latents")
    assert "a smaller batch_size" in refusal(model, count=10**9)
    line = refusal(model, count=10**9, batch_size=8)
    assert line.startswith("1000000000 pictures of 16x16 pixels") and "a smaller count" in line
    assert "a smaller count" in refusal(model, count=10**9, batch_size=8, output="latents")


def test_a_device_with_a_memory_of_its_own(model, monkeypatch):
    """It holds its share of a batch, and what does not fit it is refused, no less."""
    unet, vae, size, shape = model.unet.config, model.vae.config, (16, 16), (8, 8, 4)

    def check(limit, **arguments):
        monkeypatch.setattr(room, "of_devices", lambda: room.Memory(limit, shared=False))
        asked = Request("a", **arguments)
        pipeline_room.check_room(asked, size, shape, unet, vae, "bfloat16")

    decoder, image = 2 * 256 * 16 * 2, 2 * 64 * 16 * 2
    check(decoder)
    with pytest.raises(sdjax.SdjaxError, match="ask for smaller ones"):
        check(decoder - 1)
    check(image, output="latents")
    with pytest.raises(sdjax.SdjaxError, match="ask for smaller ones"):
        check(image - 1, output="latents")
    monkeypatch.setattr(pipeline_room.jax, "local_device_count", lambda: 2)
    check(50 * image, count=100)
    check(4 * image, count=100, batch_size=8)
    with pytest.raises(sdjax.SdjaxError, match="101 pictures .* a smaller batch_size"):
        check(50 * image, count=101)


def test_memory_is_told_by_the_system():
    host = room.of_host()
    with open("/proc/meminfo") as file:
        total = next(int(line.split()[1]) * 1024 for line in file if line.startswith("MemTotal"))
    assert 0 < host <= total
    assert room.of_devices() == room.Memory(host, shared=True)


def full(*arguments, **names):
    return jnp.zeros(2**46) + 1


def test_memory_that_runs_out_later_is_one_line(model, monkeypatch):
    for part in ("encode", "batch"):
        with monkeypatch.context() as patched:
            patched.setattr(run, part, full)
            line = refusal(model)
        assert line.startswith("out of memory (RESOURCE_EXHAUSTED") and "batch_size" in line
    model.generate("red apple", steps=1)


def test_memory_that_runs_out_in_training_is_one_line(monkeypatch, tmp_path):
    monkeypatch.setattr(loop, "_fit", full)
    with pytest.raises(sdjax.SdjaxError, match="out of memory .* lower batch_size") as refused:
        loop.fit(None, None, None, RunConfig(), tmp_path)
    assert "\n" not in str(refused.value)


def test_what_is_not_about_memory_goes_on():
    with pytest.raises(ZeroDivisionError), room.told_when_full("less"):
        1 / 0
    with pytest.raises(sdjax.SdjaxError, match=r"out of memory .*: less"):
        with room.told_when_full("less"):
            np.empty(2**50)


def test_many_seeds_cost_nothing_until_they_are_needed():
    asked = Request("a", count=10**15, seed=7)
    assert asked.total == 10**15
    assert Request("a", count=3, seed=2**64 - 3).seeds.tolist() == [2**64 - 3 + i for i in range(3)]
    with pytest.raises(sdjax.SdjaxError, match="for the last image"):
        Request("a", count=4, seed=2**64 - 3)
