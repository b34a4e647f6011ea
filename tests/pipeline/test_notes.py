"""Settings inside pictures: in A1111's words, and in ours."""

import json

import numpy as np
import pytest
from PIL import Image, PngImagePlugin

import sdjax
from sdjax.pipeline.results import infotext, notes

# As A1111's web interface writes it (its wiki and its parser say how).
THEIRS = """a cat, (very:1.2) fluffy
on a mat
Negative prompt: blurry,
low quality
Steps: 20, Sampler: DPM++ 2M, Schedule type: Karras, CFG scale: 6.5, Seed: 965400086, \
Size: 512x768, Model hash: 6ce0161689, Model: v1-5-pruned, Denoising strength: 0.6, Clip skip: 2, \
ENSD: 31337, Lora hashes: "a: 1b2c, c: 3d4e", Hires upscale: 2, \
Hires steps: 15, Hires upscaler: Latent (nearest), Refiner: xl-refiner [1234abcd], \
Refiner switch at: 0.8, RNG: CPU, Version: v1.9.4"""
SETTINGS = {
    "prompt": "a cat, (very:1.2) fluffy\non a mat",
    "negative_prompt": "blurry,\nlow quality",
    "steps": 20,
    "sampler": "DPM++ 2M Karras",
    "guidance_scale": 6.5,
    "seed": 965400086,
    "height": 768,
    "width": 512,
    "hires_strength": 0.6,
    "clip_skip": 1,
    "hires": 2.0,
    "hires_steps": 15,
    "hires_by": "latent-nearest",
}
LEFT = {
    "Model hash": "6ce0161689",
    "Model": "v1-5-pruned",
    "ENSD": "31337",
    "Lora hashes": "a: 1b2c, c: 3d4e",
    "Refiner": "xl-refiner [1234abcd]",
    "Refiner switch at": "0.8",
}
OURS = {
    "prompt": "ein „Haus“, 家", "negative_prompt": "no: a, b", "steps": 12, "sampler": "dpmpp_2m",
    "sigmas": "karras", "guidance_scale": 2.25, "seed": 7, "clip_skip": 1, "tile": "xy",
    "image": ["a, b.png"], "eta": None,
}  # fmt: skip


def test_a1111s_text_is_read():
    assert infotext.read(THEIRS) == (SETTINGS, LEFT)


@pytest.mark.parametrize(
    ("text", "settings", "left"),
    [
        ("only a prompt", {"prompt": "only a prompt"}, {}),
        ("a, b: c", {"prompt": "a, b: c"}, {}),  # no line of settings: less than three
        ("x\nSteps: 3, Sampler: Euler a, Schedule type: Turbo, Seed: 1",
         {"prompt": "x", "steps": 3, "sampler": "Euler a", "seed": 1}, {"Schedule type": "Turbo"}),
        ("x\nSteps: 3, Sampler: Euler, Schedule type: Automatic, Seed: 1",
         {"prompt": "x", "steps": 3, "sampler": "Euler Automatic", "seed": 1}, {}),
        ("x\nSteps: 3, Denoising strength: 0.5, Seed: 1, Mask blur: 4, Inpaint area: Only masked, "
         "Masked area padding: 32, Variation seed: 5, Variation seed strength: 0.2",
         {"prompt": "x", "steps": 3, "strength": 0.5, "seed": 1, "mask_blur": 4.0,
          "only_masked": 32, "variation_seed": 5, "variation_strength": 0.2}, {}),
        ("x <lora:a:0.8>\nNegative prompt: <lyco:b>\nSteps: 3, Sampler: Euler, Seed: 1",
         {"prompt": "x", "steps": 3, "sampler": "Euler", "seed": 1},
         {"files named in the prompt": "<lora:a:0.8> <lyco:b>"}),
        ("x\nSteps: 3, Seed: 1, Hires upscale: 1.5, Hires upscaler: R-ESRGAN 4x+",
         {"prompt": "x", "steps": 3, "seed": 1, "hires": 1.5},
         {"Hires upscaler": "R-ESRGAN 4x+"}),
    ],
)  # fmt: skip
def test_other_texts(text, settings, left):
    assert infotext.read(text) == (settings, left)


def test_a_text_of_ours_is_a1111s():
    text = infotext.written(OURS, (64, 48), {"name": "a model: best", "hash": "0123456789"})
    assert text == (
        "ein „Haus“, 家\nNegative prompt: no: a, b\nSteps: 12, Sampler: DPM++ 2M, Schedule type: "
        "Karras, CFG scale: 2.25, Seed: 7, Size: 48x64, Model hash: 0123456789, "
        'Model: "a model: best", Clip skip: 2, Tiling: True, Version: sdjax'
    )
    settings, left = infotext.read(text)
    assert settings["clip_skip"] == 1 and settings["tile"] == "xy" and settings["height"] == 64
    assert left == {"Model": "a model: best", "Model hash": "0123456789"}


def test_a_second_pass_a_part_and_a_refiner_come_back():
    given = {"prompt": "x", "steps": 4, "seed": 1, "mask_blur": 2.5, "only_masked": 8, "hires": 1.5,
             "hires_strength": 0.6, "hires_by": "lanczos", "hires_steps": 3, "variation_seed": 9,
             "variation_strength": 0.25}  # fmt: skip
    refined = {"refiner": "models/xl-refiner.safetensors", "handoff": 0.75}
    settings, left = infotext.read(infotext.written({**given, **refined}, (64, 48), {"name": "m"}))
    assert settings == {**given, "height": 64, "width": 48}
    assert left == {"Refiner": "xl-refiner", "Refiner switch at": "0.75", "Model": "m"}


def test_a_number_that_is_none_is_told():
    with pytest.raises(sdjax.SdjaxError, match="Steps in a picture's text is no number: 'many'"):
        infotext.read("x\nSteps: many, Seed: 1, Sampler: Euler")


@pytest.mark.parametrize("kind", notes.FORMATS)
def test_a_file_gives_its_settings_back(tmp_path, kind):
    path = tmp_path / f"picture.{kind}"
    Image.new("RGB", (8, 8)).save(path, **notes.file_options(kind, OURS, THEIRS))
    assert Image.open(path).format == kind.upper()
    assert notes.read_settings(path) == (OURS, {})


@pytest.mark.parametrize("kind", notes.FORMATS)
@pytest.mark.parametrize("order", ["utf-16-be", "utf-16-le"])
def test_a_file_of_a1111_is_read(tmp_path, kind, order):
    path = tmp_path / f"picture.{kind}"
    text, exif = PngImagePlugin.PngInfo(), Image.Exif()
    text.add_text("parameters", THEIRS)
    exif.get_ifd(0x8769)[0x9286] = b"UNICODE\0" + THEIRS.encode(order)
    options = {"pnginfo": text} if kind == "png" else {"exif": exif.tobytes()}
    Image.new("RGB", (8, 8)).save(path, kind, **options)
    assert notes.read_settings(path) == (SETTINGS, LEFT)


def test_a_png_shows_each_setting(tmp_path):
    Image.new("RGB", (8, 8)).save(tmp_path / "a.png", **notes.file_options("png", OURS, "told"))
    shown = Image.open(tmp_path / "a.png").text
    assert shown["prompt"] == OURS["prompt"] and shown["seed"] == "7"
    assert shown["image"] == "a, b.png" and shown["parameters"] == "told"
    assert json.loads(shown["sdjax"]) == OURS


def test_what_holds_no_settings_is_refused(tmp_path):
    path = tmp_path / "a.png"
    Image.new("RGB", (8, 8)).save(path)
    with pytest.raises(sdjax.SdjaxError, match="a.png holds no settings: expected .* got no text"):
        notes.read_settings(path)
    text = PngImagePlugin.PngInfo()
    text.add_text("workflow", "{}")
    Image.new("RGB", (8, 8)).save(path, pnginfo=text)
    with pytest.raises(sdjax.SdjaxError, match="got workflow, a workflow of ComfyUI"):
        notes.read_settings(path)
    exif = Image.Exif()
    exif[0x010E] = '{"of": "another program"}'
    jpeg = tmp_path / "b.jpeg"
    Image.new("RGB", (8, 8)).save(jpeg, exif=exif.tobytes())
    with pytest.raises(sdjax.SdjaxError, match="b.jpeg holds no settings"):
        notes.read_settings(jpeg)
    exif[0x010E] = 'sdjax: {"a": 1;'
    Image.new("RGB", (8, 8)).save(jpeg, exif=exif.tobytes())
    with pytest.raises(sdjax.SdjaxError, match="its settings are damaged"):
        notes.read_settings(jpeg)
    path.write_bytes(np.zeros(100, np.uint8).tobytes())
    with pytest.raises(sdjax.SdjaxError, match="not a readable picture"):
        notes.read_settings(path)
