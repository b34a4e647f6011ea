"""What a training takes of devices that are not there."""

import importlib.util
import json
from collections import Counter
from dataclasses import replace

import jax
import pytest

from sdjax import absent
from sdjax.cli import main
from sdjax.errors import SdjaxError
from sdjax.parallel import Placement
from sdjax.training.recipes.plan import estimate, remedies
from tests.training.small import PIXELS

TEXT = """
  %all-reduce.3 = f32[8,16]{1,0} all-reduce(%dot), replica_groups=[1,4]<=[4], to_apply=%add
  %ag = (f32[2,16]{1,0}, f32[8,16]{1,0}) all-gather-start(%p), replica_groups={{0,1,2,3}}
  %agd = f32[8,16]{1,0} all-gather-done(%ag)
  %rs = bf16[2,16]{1,0} reduce-scatter(%g), replica_groups=[2,2]<=[4], dimensions={0}
  %same = f32[4]{0} all-reduce(%x), replica_groups={{0},{1},{2},{3}}, to_apply=%add
  %tuple = (f32[4]{0}, s32[2]{0}) all-reduce(%x, %y), to_apply=%add
"""


def test_collectives_are_read_from_a_programs_text():
    found = absent.collectives(TEXT, 4)
    assert [(one.kind, one.size, one.group) for one in found] == [
        ("all-reduce", 512, 4), ("all-gather", 512, 4), ("reduce-scatter", 128, 2),
        ("all-reduce", 24, 4),
    ]
    assert [one.moved for one in found] == [768, 384, 64, 36]


@pytest.fixture(scope="module")
def here():
    """The plan of a tiny recipe for the two devices of this machine, whole copies."""
    return estimate(PIXELS, "cpu")


def test_the_figures_of_this_machine(here):
    weights = here.parameters // 4
    assert here.devices == 2 and here.images == PIXELS.diffusion.batch_size
    assert here.parameters == here.ema and 2 * here.parameters < here.optimizer
    assert here.data == 2 * 32 * 32 * 3 * 4  # two of four pictures
    assert here.flops > 6 * 32 * 32 * weights  # forward and backward, most kernels at every pixel
    # Gradients; or activations, as the convolutions written for CPUs have it.
    assert sum(one.size for one in here.collectives) >= here.parameters
    assert here.temporary > here.parameters and not here.bounds


def test_gpus_have_sizes_and_operations_alone(here, capsys):
    cut = estimate(replace(PIXELS, placement=Placement(fsdp=-1)), "h100:4")
    whole = estimate(PIXELS, "h100:4")
    assert whole.parameters == here.parameters and whole.temporary is None
    assert cut.parameters < 0.5 * whole.parameters
    assert cut.optimizer < 0.5 * whole.optimizer
    assert 0.5 < 2 * whole.flops / here.flops < 2  # a quarter of the pictures, and a half
    assert set(whole.bounds) == {"compute", "links"}
    # Copies add up their gradients; cut, they are gathered twice and summed where they lie.
    (told,) = whole.collectives
    assert told == ("all-reduce", whole.parameters, 4)
    kinds = Counter(one.kind for one in cut.collectives)
    assert kinds == {"all-gather": 2, "reduce-scatter": 1, "all-reduce": 1}
    gathered, small = cut.collectives[0].size, cut.collectives[-1].size
    assert gathered + small == whole.parameters and small < 0.1 * gathered
    assert cut.collectives[0].moved == 0.75 * gathered
    assert any("--placement.fsdp -1" in line for line in remedies(PIXELS, whole))


@pytest.mark.parametrize(("topology", "words"), [
    ("v9:2x2", "no topology 'v9:2x2': expected cpu, or one of v5e"),
    ("h100:two", "expected a number of GPUs"), ("h100:2x2", "expected a number of GPUs"), ("h100:3", "cannot be split over 3 devices"),
])
def test_what_cannot_be_planned_is_refused(topology, words):
    with pytest.raises(SdjaxError, match=words):
        estimate(PIXELS, topology)


def test_the_command_tells_bounds_and_cost(tmp_path, capsys):
    config = tmp_path / "tiny.py"
    config.write_text("from tests.training.small import PIXELS as config")
    arguments = ["plan", "--config", str(config), "--topology", "h100:4", "--price", "2"]
    assert main([*arguments[:-1], "-2"]) == 2
    assert "price must be at least 0, got -2" in capsys.readouterr().err
    assert main([*arguments, "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["devices"] == 4 and told["fits"] is None and told["binds"] in told["seconds_at_least"]
    rate = told["images_per_second_at_most"]
    assert rate == pytest.approx(4 / max(told["flops"] / 989e12, told["seconds_at_least"]["links"]))
    assert told["cost_per_million_images_at_least"] == pytest.approx(8 / 3600 * 1e6 / rate)


@pytest.mark.full
def test_the_command_plans_a_model_without_its_weights(capsys):
    arguments = ["--config", "lora", "--model", "sd15", "--topology", "a100:8"]
    assert main(["plan", *arguments, "--diffusion.batch-size", "64", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["bytes"]["frozen"] > 4 * 859_520_964  # of the U-Net, float32
    assert told["devices"] == 8


@pytest.mark.skipif(importlib.util.find_spec("libtpu") is None, reason="needs libtpu")
def test_a_pod_is_compiled_for(here):
    found = estimate(replace(PIXELS, placement=Placement(fsdp=-1)), "v5e:2x2")
    assert found.devices == 4 and found.parameters < 0.5 * here.parameters
    assert {"all-gather"} <= {one.kind for one in found.collectives}
    assert set(found.bounds) == {"compute", "memory", "links"}
    assert jax.default_backend() == "cpu"
