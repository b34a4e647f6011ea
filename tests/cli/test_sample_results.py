"""What `sample` writes, and what it reads back from a picture."""

import json

import numpy as np
import pytest
from PIL import Image

import main
import sdjax
from sdjax.cli.sample import sample
from sdjax.cli.sample_options import axis, cells, like_a_picture, without
from sdjax.evaluation.grids import labelled_grid
from sdjax.pipeline.results import notes
from tests.pipeline.test_notes import THEIRS
from tests.weights.small import random_pipeline


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    folder = tmp_path_factory.mktemp("model")
    pipeline = random_pipeline()
    pipeline.save_pretrained(folder)
    return folder


def sampled(*options):
    assert main.main(["sample", *map(str, options)]) == 0


def test_a_picture_is_made_again(model, tmp_path, capsys):
    Image.new("RGB", (20, 16), "red").save(tmp_path / "start.png")
    options = ["--model", model, "--out", tmp_path / "a", "--count", 2, "--batch-size", 1, "--json"]
    sampled(
        "--prompt", "red apple", "a \"quoted\", thing", "--negative-prompt=--blue", *options,
        "--sampler", "euler_a", "--steps", 3, "--seed", 5, "--image", tmp_path / "start.png",
        "--strength", 0.9, "--tile", "x", "--windows", 12, 4, "--grid", 4,
    )  # fmt: skip
    made = [Image.open(tmp_path / "a" / f"0000{i}.png") for i in range(4)]
    assert made[0].size == (20, 16) and made[3].text["seed"] == "8"
    text = made[3].text["parameters"]
    assert text.startswith('a "quoted", thing\nNegative prompt: --blue\nSteps: 3')
    assert json.loads((tmp_path / "a" / "00003.json").read_text())["windows"] == ["12", "4"]
    sheet = Image.open(tmp_path / "a" / "00000-sheet.png")
    assert sheet.width > 3 * sheet.height / 2  # four in a row
    again = ["--out", tmp_path / "b", "--batch-size", 1, "--format"]
    sampled("--like", tmp_path / "a" / "00003.png", *again, "png")
    assert Image.open(tmp_path / "b" / "00000.png").tobytes() == made[3].tobytes()
    sampled(f"--like={tmp_path / 'a' / '00003.png'}", *again, "webp")
    found, left = notes.read_settings(tmp_path / "b" / "00001.webp")
    assert found == notes.read_settings(tmp_path / "a" / "00003.png")[0] and left == {}
    sampled("--like", tmp_path / "b" / "00001.webp", *again, "jpeg", "--seed", 6)
    jpeg, before = Image.open(tmp_path / "b" / "00002.jpeg"), made[1]
    assert notes.read_settings(jpeg.filename)[0]["seed"] == 6
    assert np.abs(np.int16(jpeg) - np.int16(before.convert("RGB"))).mean() > 2  # another prompt
    assert "warning" not in capsys.readouterr().err


def test_a_grid_over_two_settings(model, tmp_path, capsys):
    options = ["--prompt", "red apple", "--model", model, "--seed", 3]
    sampled(
        *options, "--out", tmp_path / "grid", "--x", "sampler=ddim,euler", "--y",
        "guidance_scale=1.5,4,7", "--steps", 2,
    )  # fmt: skip
    assert "6 pictures from seed 3 on, and" in capsys.readouterr().out
    grid = Image.open(tmp_path / "grid" / "00000-xy.png")
    made = [Image.open(tmp_path / "grid" / f"0000{i}.png") for i in range(6)]
    assert grid.height > 3 * made[0].height and grid.width > 2 * made[0].width
    assert [picture.text["sampler"] for picture in made] == ["ddim", "euler"] * 3
    assert [picture.text["guidance_scale"] for picture in made[::2]] == ["1.5", "4.0", "7.0"]
    sampled(
        *options, "--out", tmp_path / "one", "--steps", 2, "--sampler", "euler",
        "--guidance-scale", 4,
    )  # fmt: skip
    assert Image.open(tmp_path / "one" / "00000.png").tobytes() == made[3].tobytes()


def refusal(capsys, *arguments):
    assert main.main(["sample", *map(str, arguments)]) == 2
    printed = capsys.readouterr()
    assert printed.out == "" and printed.err.count("\n") == 1
    return printed.err


def test_a_picture_of_a1111_is_taken(tmp_path, recwarn, capsys):
    path = tmp_path / "theirs.png"
    Image.new("RGB", (8, 8)).save(path, **notes.file_options("png", {"a": 1}, THEIRS))
    text = Image.open(path).text["parameters"]
    picture, info = Image.new("RGB", (8, 8)), notes.PngInfo()
    info.add_itxt("parameters", text)
    picture.save(path, pnginfo=info)
    arguments = like_a_picture(["--like", str(path), "--model", "m", "--steps", "3"], sample)
    assert arguments == [
        "--prompt=a cat, (very:1.2) fluffy\non a mat", "--negative-prompt=blurry,\nlow quality",
        "--sampler=DPM++ 2M Karras", "--guidance-scale=6.5", "--seed=965400086", "--height=768",
        "--width=512", "--clip-skip=1", "--hires=2.0", "--hires-steps=15",
        "--hires-by=latent-nearest", "--hires-strength=0.6", "--model", "m", "--steps", "3",
    ]  # fmt: skip
    told = str(recwarn.list[0].message)
    assert "ENSD (31337), Lora hashes (a: 1b2c, c: 3d4e), Refiner (xl-refiner [1234abcd])" in told
    plain = THEIRS.replace("Hires upscale: 2, ", "")
    info = notes.PngInfo()
    info.add_itxt("parameters", plain)
    picture.save(path, pnginfo=info)
    like_a_picture(["--like", str(path), "--model", "m"], sample)
    told = str(recwarn.list[-1].message)
    assert "Denoising strength (of a picture that is not given as --image)" in told
    assert "was made by the model 'v1-5-pruned': give it as --model" in refusal(
        capsys, "--like", path
    )
    Image.new("RGB", (8, 8)).save(path, **notes.file_options("png", {"flavour": 1}, ""))
    assert "has the setting 'flavour', which this version does not know" in refusal(
        capsys, "--like", path
    )
    assert "grid must be at least 1, got 0" in refusal(capsys, "--prompt", "a", "--grid", "0")
    assert "--like needs a picture" in refusal(capsys, "--prompt", "a", "--like")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("model=a,b", "--x has no setting 'model'"),
        ("stepps=1,2", "did you mean steps"),
        ("cfg_scale=1,2", "it is guidance_scale here"),
        ("steps", "must be a setting and its values, such as steps=10,20, got steps"),
        ("steps=1,,2", "must be a setting and its values"),
        ("steps=1,0", "steps must be at least 1, got 0"),
    ],
)
def test_axes_that_are_none_are_refused(capsys, text, message):
    assert message in refusal(capsys, "--prompt", "a", "--model", "absent/model", "--x", text)


def test_cells_go_row_after_row():
    axes = {"x": axis("x", "steps=1,2", sample), "y": axis("y", 'prompt="a, b",c', sample)}
    assert axes["y"].labels == ["prompt: a, b", "prompt: c"]
    made = cells(["--prompt", "x", "y", "--seed", "3", "--steps=9"], axes, list)
    assert made == [
        ["--seed", "3", f"--prompt={prompt}", f"--steps={steps}"]
        for prompt in ("a, b", "c")
        for steps in (1, 2)
    ]
    assert without(["--a", "1", "2", "--b=3", "--c"], {"a", "b"}) == ["--c"]


def test_a_labelled_grid_has_its_pictures_in_place():
    colours = [["red", "green"], ["blue", "white"], ["black", "yellow"]]
    rows = [[Image.new("RGB", (150, 120), colour) for colour in row] for row in colours]
    grid = labelled_grid(rows, ["one", "two"], ["a", "b", "c"])
    for row, y in enumerate(range(3)):
        for column, x in enumerate(range(2)):
            place = grid.width - (2 - x) * 158 + 75, grid.height - (3 - y) * 128 + 60
            assert grid.getpixel(place) == rows[row][column].getpixel((0, 0))
    plain = labelled_grid(rows, ["", ""], ["", "", ""])
    assert plain.size == (2 * 158 + 8, 3 * 128 + 8)
    with pytest.raises(sdjax.SdjaxError, match="3 labelled rows and 1 columns expected"):
        labelled_grid(rows, ["one"], ["a", "b", "c"])
