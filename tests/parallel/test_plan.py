"""What a training takes of devices that are not there."""

import importlib.util
import json
import math
from collections import Counter
from dataclasses import replace

import jax
import pytest

import sdjax
from sdjax import absent
from sdjax.cli import main
from sdjax.errors import SdjaxError
from sdjax.parallel import Placement
from sdjax.training.recipes.plan import estimate, remedies
from sdjax.weights.tensors import read_safetensors
from tests.training.small import PIXELS
from tests.weights import small

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


def told_of(capsys, *given):
    """The figures of the making of pictures."""
    assert main(["plan", *given, "--dtype", "float32", "--json"]) == 0
    return json.loads(capsys.readouterr().out)


def test_pictures_are_planned_without_weights(capsys):
    """Half the work without guidance, as often as the sampler asks, and the decoder once."""
    given = ["--model", str(sdjax.EMOJI), "--count", "4", "--topology", "h100:2"]
    guided = told_of(capsys, *given, "--steps", "4")
    longer = told_of(capsys, *given, "--steps", "8")
    plain = told_of(capsys, *given, "--steps", "8", "--guidance-scale", "1", "--price", "3")
    files = sdjax.EMOJI.glob("*/*.safetensors")
    sizes = [tensor.shape for path in files for tensor in read_safetensors(path)[0].values()]
    # The encoder, which makes no picture, is there too.
    assert guided["bytes"]["parameters"] == 4 * sum(math.prod(shape) for shape in sizes)
    assert guided["bytes"]["temporary"] is None and guided["fits"] is None
    assert (guided["evaluations"], longer["evaluations"]) == (4, 8)
    evaluation = (longer["flops"] - guided["flops"]) / 4
    decoder = guided["flops"] - 4 * evaluation
    assert 0 < decoder < 4 * evaluation
    assert plain["flops"] == pytest.approx(8 * evaluation / 2 + decoder, rel=0.05)
    rate = plain["images_per_second_at_most"]
    assert rate == pytest.approx(4 / (plain["flops"] / 989e12))
    assert plain["cost_per_million_images_at_least"] == pytest.approx(6 / 3600 * 1e6 / rate)


def test_pictures_are_compiled_for_this_machine(tmp_path, capsys):
    small.random_pipeline().save_pretrained(tmp_path)
    given = ["--model", str(tmp_path), "--topology", "cpu", "--steps", "3", "--count", "2"]
    told = told_of(capsys, *given)
    assert told["devices"] == 2 and told["bytes"]["temporary"] > 0 and told["bytes_accessed"] > 0
    assert told["bytes"]["memory"] == sum(
        size for name, size in told["bytes"].items() if name != "memory")


@pytest.mark.parametrize(("given", "words"), [
    (["--topology", "h100:2"], "give --config for a training, or --model alone"),
    (["--topology", "h100:2", "--model", "sd15", "--count", "3"], "cannot be split over 2 devices"),
    (["--topology", "h100:1", "--model", "absent/of/nobody"], "absent/of/nobody"),
    (["--topology", "h100:1", "--model", "sd15", "--height", "100"], "height must be a multiple of 8"),
])  # fmt: skip
def test_pictures_that_cannot_be_planned_are_refused(given, words, capsys):
    assert main(["plan", *given]) == 2
    printed = capsys.readouterr().err
    assert words in printed and printed.count("\n") == 1


@pytest.mark.full
def test_published_models_are_planned_with_their_nine_channels(capsys):
    given = ["--topology", "h100:1", "--model", "sd15", "--steps", "1", "--guidance-scale", "1"]
    plain, inpaint = told_of(capsys, *given), told_of(capsys, *given, "--inpaint")
    more = inpaint["bytes"]["parameters"] - plain["bytes"]["parameters"]
    assert more == 4 * 5 * 9 * 320  # float32 of conv_in's further channels
