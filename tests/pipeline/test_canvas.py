"""Parts of pictures that are painted: soft masks, crops around them, larger canvases."""

import dataclasses

import diffusers
import jax
import numpy as np
import pytest
from PIL import Image, ImageFilter

import sdjax
from sdjax.pipeline.plans import canvas, crop
from sdjax.pipeline.plans.request import Request
from tests.pipeline.peers import PROMPTS
from tests.pipeline.test_conditions import generators, picture, theirs

SIZE = 56, 64
OPTIONS = {"steps": 6, "guidance_scale": 5.0, "seed": 7, "progress": False}


def mask():
    array = np.zeros(SIZE, np.uint8)
    array[21:31, 11:19] = 255
    return Image.fromarray(array)


def decibels(one, other):
    error = (np.asarray(one, np.float64) - np.asarray(other, np.float64)) / 255
    return -10 * np.log10(max((error**2).mean(), 1e-12))


@pytest.mark.parametrize("blur", [None, 2])
def test_only_the_masked_part_is_that_of_diffusers(model, folder, blur):
    soft = mask().filter(ImageFilter.GaussianBlur(blur)) if blur else mask()
    options = {"image": picture(size=SIZE), "height": 24, "width": 32}
    (expected,) = theirs(
        diffusers.StableDiffusionInpaintPipeline, folder, mask_image=soft, padding_mask_crop=3,
        generator=generators(7), num_inference_steps=6, output_type="pil", **options,
    )  # fmt: skip
    (made,) = model.generate(
        PROMPTS[0], mask=mask(), mask_blur=blur, only_masked=3, noise="torch", **options, **OPTIONS
    )
    assert made.size == expected.size == SIZE[::-1]
    assert decibels(made, expected) > 60
    # Where a soft mask blends them, 8 bits are rounded otherwise.
    assert np.abs(np.float32(made) - np.float32(expected)).max() <= 2
    outside = np.asarray(soft) == 0
    np.testing.assert_array_equal(np.asarray(made)[outside], np.asarray(options["image"])[outside])
    assert decibels(made, options["image"]) < 40


def test_a_control_picture_is_cut_as_the_picture_is(model, controlnet):
    """As diffusers cuts it; one of another size means the same places."""
    _, control = controlnet
    shown = picture(3, SIZE)
    planned = model.planned(asked(controls=[control(shown)]))
    (cut,), box = planned.controls[0].picture, tuple(planned.conditions.frame.boxes[0].tolist())
    processor = diffusers.image_processor.VaeImageProcessor(do_normalize=False)
    expected = processor.preprocess(shown, 24, 32, "fill", box)[0].numpy().transpose(1, 2, 0)
    np.testing.assert_array_equal(np.float32(cut) / 255, expected)
    smaller = model.planned(asked(controls=[control(shown.resize((32, 28)))])).controls[0]
    assert decibels(smaller.picture[0], cut) > 25
    # The crop painted by itself.
    options = {**OPTIONS, "steps": 2, "output": "numpy", "paste": False, "height": 24, "width": 32}
    whole = {"image": picture(size=SIZE), "mask": mask(), "only_masked": 3}
    made = model.generate(PROMPTS[0], controls=[control(shown, 30)], **whole, **options)
    crops = {name: getattr(planned.conditions, name).arrays[0] for name in ("image", "mask")}
    same = model.generate(PROMPTS[0], controls=[control(cut, 30)], **crops, **options)
    compilations = []
    jax.monitoring.register_event_duration_secs_listener(
        lambda name, *_, **__: compilations.append(name) if "backend_compile" in name else None
    )
    other = model.generate(PROMPTS[0], controls=[control(shown, 9, 0.2)], **crops, **options)
    assert compilations == []
    np.testing.assert_allclose(made, same, atol=1e-6)
    assert np.abs(made - other).max() > 1e-4


def asked(**options):
    return Request(
        PROMPTS[0], image=picture(size=SIZE), mask=mask(), only_masked=3, height=24, width=32,
        **options,
    )  # fmt: skip


def test_regions_are_cut_as_the_picture_is(model):
    """A region of the lower half is that of the crop too; each image has the crop of its mask."""
    half = Image.fromarray(np.repeat(np.uint8([[0]] * 26 + [[255]] * 30), SIZE[1], axis=1))
    planned = model.planned(asked(regions=[sdjax.Region("red", half)], count=2))
    top, bottom = planned.conditions.frame.boxes[0, [1, 3]]
    share = (26 - top) / (bottom - top)  # of the crop's rows that the prompt has
    np.testing.assert_allclose(planned.fields[:, 0].mean(axis=(1, 2)), share, atol=0.02)
    assert planned.fields[0, 0, 0, 0] == 1 and planned.fields[1, 1, -1, -1] == 1


def test_boxes_are_those_of_diffusers():
    random = np.random.RandomState(0)
    find = diffusers.image_processor.VaeImageProcessor.get_crop_region
    for _ in range(200):
        shape = random.randint(8, 60, 2)
        drawn = np.zeros(shape, np.uint8)
        top, left = random.randint(0, shape)
        drawn[top : top + random.randint(1, 30), left : left + random.randint(1, 30)] = 255
        height, width = random.randint(8, 64, 2)
        padding = random.randint(0, 12)
        expected = find(Image.fromarray(drawn), int(width), int(height), pad=int(padding))
        assert crop.box_around(drawn, (height, width), padding) == tuple(expected)


def test_greys_blend_and_keep_what_is_black(model):
    shades = np.zeros(SIZE, np.float32)
    shades[:, 8:24], shades[:, 24:] = 0.75, 1.0
    given = picture(size=SIZE)
    options = {**OPTIONS, "steps": 3, "output": "numpy"}
    made = model.generate(PROMPTS[0], image=given, mask=shades, **options)[0]
    whole = model.generate(PROMPTS[0], image=given, mask=shades, paste=False, **options)[0]
    pixels = np.asarray(given) / np.float32(255) * 2 - 1
    blend = shades[..., None] * whole + (1 - shades[..., None]) * pixels
    np.testing.assert_allclose(made, blend, atol=1e-6)
    np.testing.assert_array_equal(made[:, :8], pixels[:, :8])


def test_a_larger_canvas_keeps_its_picture(model):
    """But for the feather at the edge that is extended; the same seed gives the same again."""
    given, extend = picture(size=SIZE), (8, 0, 0, 16)
    options = {**OPTIONS, "steps": 3, "strength": 0.9}
    made = [model.generate(PROMPTS[0], image=given, extend=extend, **options)[0] for _ in range(2)]
    (height, width), inside = SIZE, np.s_[: SIZE[0] - SIZE[0] // 4, 8 + SIZE[1] // 4 :]
    assert made[0].size == (width + 8, height + 16)
    np.testing.assert_array_equal(np.asarray(made[0]), np.asarray(made[1]))
    pixels = np.asarray(given)
    kept = pixels[: height - height // 4, width // 4 :]
    np.testing.assert_array_equal(np.asarray(made[0])[inside], kept)
    shares = canvas.feathered(SIZE, extend, None)
    assert (shares[:, :8] == 1).all() and (shares[height:] == 1).all() and shares[0, 8] < 1
    assert (np.diff(shares[0]) <= 0).all() and (shares[inside] == 0).all()
    pair = model.generate(PROMPTS, image=given, extend=extend, **{**options, "seed": [9, 7]})
    np.testing.assert_array_equal(np.asarray(pair[1])[inside], kept)
    one, other = (canvas.filled(pixels, extend, seed) for seed in (7, 8))
    assert (one != other).any() and (one[:height, 8:] == pixels).all()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"mask_blur": 4}, "mask_blur is for a mask"),
        ({"only_masked": 4, "image": picture(size=SIZE)}, "only_masked is for a mask"),
        ({"extend": (8, 0, 0, 0)}, "extend is for a picture"),
        ({"extend": (8, 0, 0), "image": picture(size=SIZE)}, "extend must be four whole numbers"),
        ({"extend": (0, 0, 0, 0), "image": picture(size=SIZE)}, "extend is 0 on all sides"),
        ({"extend": (5, 0, 0, 0), "image": picture(size=SIZE)}, "69x56 pixels: expected multiples"),
        ({"extend": (8, 0, 0, 0), "image": picture(size=SIZE), "height": 8}, "leave height out"),
        (
            {"image": picture(size=SIZE), "mask": mask(), "only_masked": 1,
             "regions": [sdjax.Region("red", np.full((8, 8), 0.5, np.float32))] * 2,
             "depth": np.ones(SIZE)},
            "this model takes no depth",
        ),
        (
            {"image": np.zeros((*SIZE, 3), np.float32), "mask": mask(), "only_masked": 1},
            "only_masked is for pictures of 8 bits",
        ),
        (
            {"image": picture(size=SIZE), "mask": Image.new("L", SIZE[::-1], 99)},
            "mask is black everywhere",
        ),
    ],
)
def test_what_does_not_go_together_is_refused(model, arguments, message):
    with pytest.raises(sdjax.SdjaxError, match=message):
        model.generate(PROMPTS[0], **arguments)
