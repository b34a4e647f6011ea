"""Pictures that steer on the command line: --control, --reference, and `draw`."""

import json

import numpy as np
import pytest
from PIL import Image
from safetensors.torch import save_file

import main
import sdjax
from sdjax.data import canny
from sdjax.models.ip_adapter import IPAdapterConfig, cross_attentions
from sdjax.models.t2i_adapter import T2IAdapterConfig
from sdjax.pipeline.steering.controls import read_control
from sdjax.weights.parts import ControlNet, controlnet_shapes
from sdjax.weights.single_file import read_file
from sdjax.weights.t2i_adapter import T2IAdapter, adapter_shapes, is_t2i_adapter
from tests.models.test_clip_vision import SMALL, peer_of
from tests.models.test_ip_adapter import random_adapter
from tests.weights.small import UNET_SD1, random_params, random_pipeline


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A model, one network of each kind, and a picture."""
    folder = tmp_path_factory.mktemp("steered")
    random_pipeline().save_pretrained(folder / "model")
    config = T2IAdapterConfig(channels=(16, 32), num_res_blocks=1, downscale_factor=2)
    adapter = T2IAdapter(config)
    adapter.save_pretrained(random_params(adapter_shapes(config)), folder / "adapter")
    absent = "sample_size", "out_channels", "up_block_types"
    fields = {key: value for key, value in UNET_SD1.items() if key not in absent}
    fields["conditioning_embedding_out_channels"] = [8, 16]
    config = ControlNet.config_class.from_dict(fields)
    control = ControlNet(config)
    control.save_pretrained(random_params(controlnet_shapes(config)), folder / "control")
    unet = sdjax.UNetConfig.from_dict(UNET_SD1)
    layers = tuple(width for _, width in cross_attentions(unet))
    small = IPAdapterConfig("plain", SMALL.projection_dim, unet.context_width, layers, tokens=4)
    _, files = random_adapter(small)
    save_file(
        {f"{part}.{key}": t for part, state in files.items() for key, t in state.items()},
        folder / "ip-adapter.safetensors",
    )
    projected = type(SMALL).from_dict(
        {**SMALL.to_dict(), "architectures": ["CLIPVisionModelWithProjection"]}
    )
    peer_of(projected).save_pretrained(folder / "clip")
    noise = np.random.RandomState(0).randint(0, 256, (24, 24, 3), np.uint8)
    Image.fromarray(noise).save(folder / "a.png")
    return folder


def sample(place, out, *options):
    status = main.main(
        ["sample", "--prompt", "red apple", "--model", str(place / "model"), "--steps", "2",
         "--out", str(out), *options]
    )  # fmt: skip
    return status, sorted(out.glob("00000.png")) if out.is_dir() else []


def test_each_kind_is_found_and_steers(place, tmp_path):
    picture, encoder = place / "a.png", ["--image-encoder", str(place / "clip")]
    made = {}
    for name, options in (
        ("none", []),
        ("adapter", ["--control", f"{place / 'adapter'}:{picture}"]),
        ("control", ["--control", f"{place / 'control'}:{picture}:2"]),
        ("reference", ["--reference", f"{place / 'ip-adapter.safetensors'}:{picture}", *encoder]),
    ):
        status, (path,) = sample(place, tmp_path / name, *options)
        assert status == 0
        made[name] = np.asarray(Image.open(path))
    assert len({image.tobytes() for image in made.values()}) == 4
    assert isinstance(read_control(place / "control"), sdjax.Control)
    file = place / "adapter" / "diffusion_pytorch_model.safetensors"
    assert is_t2i_adapter(read_file(file)[0])  # of a file its keys say what it is
    assert not is_t2i_adapter(read_file(place / "control" / file.name)[0])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--control", "a"], "--control must be FOLDER:PICTURE or FOLDER:PICTURE:SCALE, got a"),
        (["--reference", "a:b:c"], "--reference must be FILE:PICTURE or FILE:PICTURE:SCALE, got"),
        (["--reference", "a:absent.png"], "no such picture: absent.png"),
        (["--image-encoder", "a"], "--image-encoder is for --reference: give that too"),
        (["--ip-adapter", "a"], "it is --reference here"),
    ],
)
def test_options_that_do_not_fit_are_refused_first(place, tmp_path, capsys, options, message):
    assert sample(place, tmp_path / "out", *options) == (2, [])
    assert message in capsys.readouterr().err


def test_edges_and_poses_are_drawn(place, tmp_path, capsys):
    assert main.main(["draw", "canny", str(place / "a.png"), str(tmp_path / "edges.png")]) == 0
    expected = canny(place / "a.png")
    np.testing.assert_array_equal(np.asarray(Image.open(tmp_path / "edges.png")), expected)
    person = {"pose_keypoints_2d": [5, 6, 1] * 18}
    (tmp_path / "a.json").write_text(json.dumps({"people": [person]}))
    arguments = ["draw", "pose", str(tmp_path / "a.json"), str(tmp_path / "pose.png")]
    assert main.main([*arguments, "--height", "32", "--width", "16"]) == 0
    assert Image.open(tmp_path / "pose.png").size == (16, 32)
    assert main.main(arguments) == 2
    assert "pose.png exists already" in capsys.readouterr().err
    assert main.main(["draw"]) == 0 and main.main(["draw", "edges", "a", "b"]) == 2
