"""`sample` with what was trained on top of a model, and with what each image has of its own."""

import json

import numpy as np
import pytest
from PIL import Image

import main
import sdjax
from sdjax.cli.adapted import weights
from sdjax.weights.tensors import lazy, write_safetensors
from tests.weights.small import random_pipeline


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A model, two LoRAs for it, and a learned word."""
    folder = tmp_path_factory.mktemp("adapted")
    pipeline = random_pipeline()
    pipeline.captions = ("red apple",)
    pipeline.save_pretrained(folder / "model")
    unet = json.loads((folder / "model" / "unet" / "config.json").read_text())
    text = json.loads((folder / "model" / "text_encoder" / "config.json").read_text())
    down, up = unet["in_channels"], unet["block_out_channels"][0]
    for i, name in enumerate("ab"):
        random = np.random.RandomState(i)
        write_safetensors(folder / f"{name}.safetensors", {
            "lora_unet_conv_in.lora_down.weight": lazy(random.randn(2, down, 3, 3)),
            "lora_unet_conv_in.lora_up.weight": lazy(random.randn(up, 2, 1, 1)),
        })  # fmt: skip
    vectors = np.random.RandomState(2).randn(2, text["hidden_size"])
    write_safetensors(folder / "toy.safetensors", {"<toy>": lazy(vectors)})
    return folder


def sampled(place, out, *options, prompts=("red apple",)):
    arguments = ["sample", "--prompt", *prompts, "--model", place / "model", "--steps", 2,
                 "--batch-size", 1, "--out", out, *options]  # fmt: skip
    assert main.main([str(one) for one in arguments]) == 0
    return [Image.open(path) for path in sorted(out.glob("0000?.png"))]


def test_pictures_of_the_command_are_those_of_the_library(place, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(place)
    prompts, own = ["a <toy>", "red apple"], ["--seed", 9, 4]
    own += ["--negative-prompt", "blue", "", "--lora", "a.safetensors:0.5", "b.safetensors"]
    own += ["--word", "toy.safetensors"]
    made = sampled(place, tmp_path / "a", *own, prompts=prompts)
    assert "warning" not in capsys.readouterr().err  # of a word that the model never saw
    model = sdjax.StableDiffusion.from_pretrained(place / "model")
    model.load_textual_inversion("toy.safetensors")
    model.load_lora("a.safetensors", 0.5)
    model.load_lora("b.safetensors")
    expected = model.generate(
        prompts, ["blue", ""], seed=[9, 4], steps=2, batch_size=1, progress=False
    )
    for picture, one in zip(made, expected, strict=True):
        np.testing.assert_array_equal(np.asarray(picture), np.asarray(one))
    assert [picture.text["seed"] for picture in made] == ["9", "4"]
    assert made[0].text["negative_prompt"] == "blue"
    assert "\nNegative prompt: blue\nSteps: 2" in made[0].text["parameters"]
    assert made[0].text["lora"] == "a.safetensors:0.5, b.safetensors"
    again = ["sample", "--like", str(tmp_path / "a" / "00000.png"), "--out", str(tmp_path / "b")]
    assert main.main(again) == 0
    assert Image.open(tmp_path / "b" / "00000.png").tobytes() == made[0].tobytes()


def test_weights_make_an_axis_and_previews_a_sheet(place, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(place)
    axis = "lora=a.safetensors:0,a.safetensors:2,b.safetensors"
    made = sampled(place, tmp_path / "grid", "--x", axis, "--preview", 1)
    (plain,) = sampled(place, tmp_path / "plain")
    assert made[0].tobytes() == plain.tobytes()
    assert len({picture.tobytes() for picture in made}) == 3
    assert (tmp_path / "grid" / "00000-xy.png").is_file()
    previews = tmp_path / "grid" / "previews"
    shown = [Image.open(previews / f"0000{i}.png") for i in range(6)]
    assert [picture.text["step"] for picture in shown] == ["1", "2"] * 3
    assert Image.open(previews / "00000-sheet.png").width > 3 * shown[0].width
    assert str(previews / "00000-sheet.png") in capsys.readouterr().out


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--lora", "absent"], "no such adapter: absent"),
        (["--lora", "absent:0.5"], "no such adapter: absent"),
        (["--lora", "a:b"], "--lora must be FILE or FILE:WEIGHT, got a:b"),
        (["--word", "absent"], "no such learned word: absent"),
        (["--embedding", "a"], "it is --word here"),
        (["--seed", "1", "2"], "seed must be one number or 1, one an image, got 2"),
        (["--negative-prompt", "a", "b"], "negative_prompt must be one or one a prompt"),
    ],
)
def test_what_does_not_fit_is_refused_first(capsys, options, message):
    arguments = ["sample", "--prompt", "a", "--model", "absent/model/of/nobody", *options]
    assert main.main(arguments) == 2
    printed = capsys.readouterr()
    assert message in printed.err and printed.err.count("\n") == 1


def test_weights_are_read(tmp_path):
    file = tmp_path / "a:2.safetensors"
    file.touch()
    assert weights((f"{file}:-0.5",)) == {str(file): -0.5}
    assert weights((str(file),)) == {str(file): 1}
    for given, message in (((str(file), f"{file}:2"), "twice"), ((f"{file}:nan",), "finite")):
        with pytest.raises(sdjax.SdjaxError, match=message):
            weights(given)
