"""Pictures, masks and depths as conditions, against diffusers' pipeline of each mode."""

import dataclasses

import diffusers
import jax
import numpy as np
import pytest
import torch
from PIL import Image

import sdjax
from sdjax.pipeline.given import conditions, inputs
from tests.pipeline import peers
from tests.pipeline.peers import PROMPTS, assert_close

SIZE = 24, 32  # height and width


def picture(seed=0, size=SIZE):
    """A smooth picture of noise."""
    small = np.random.RandomState(seed).randint(0, 256, (4, 4, 3), np.uint8)
    return Image.fromarray(small).resize(size[::-1], Image.Resampling.BICUBIC)


def mask():
    """White where the picture is repainted, on a border that is not the latents'."""
    array = np.zeros(SIZE, np.uint8)
    array[5:19, 7:30] = 255
    return Image.fromarray(array)


def generators(*seeds):
    return [torch.Generator().manual_seed(seed) for seed in seeds]


def theirs(pipeline, folder, scheduler=None, controlnet=None, **options):
    parts = {} if controlnet is None else {"controlnet": controlnet}
    made = peers.quiet(pipeline.from_pretrained(folder, safety_checker=None, **parts))
    if scheduler:
        made.scheduler = scheduler.from_config(made.scheduler.config, skip_prk_steps=True)
    options = {"num_inference_steps": 10, "guidance_scale": 5.0, "output_type": "np", **options}
    return made(PROMPTS[0], **options).images


def ours(model, **options):
    options = {"steps": 10, "guidance_scale": 5.0, "seed": 7, "noise": "torch", **options}
    return model.generate(PROMPTS[0], output="numpy", **options)


SCHEDULERS = {
    "ddim": diffusers.DDIMScheduler,
    "euler": diffusers.EulerDiscreteScheduler,
    "euler_a": diffusers.EulerAncestralDiscreteScheduler,
    "heun": diffusers.HeunDiscreteScheduler,
    "dpmpp_2m": diffusers.DPMSolverMultistepScheduler,
    "unipc": diffusers.UniPCMultistepScheduler,
    "plms": diffusers.PNDMScheduler,
}


@pytest.mark.parametrize("sampler", SCHEDULERS)
def test_image_to_image(model, folders, sampler):
    expected = theirs(
        diffusers.StableDiffusionImg2ImgPipeline, folders("sd1"), SCHEDULERS[sampler],
        image=picture(), strength=0.65, generator=generators(7),
    )  # fmt: skip
    assert_close(ours(model, image=picture(), strength=0.65, sampler=sampler), expected)


@pytest.mark.parametrize("strength", [1.0, 0.7])
@pytest.mark.parametrize("sampler", ["ddim", "euler_a", "heun", "dpmpp_2m"])
def test_inpainting_with_an_ordinary_model(model, folders, sampler, strength):
    expected = theirs(
        diffusers.StableDiffusionInpaintPipeline, folders("sd1"), SCHEDULERS[sampler],
        image=picture(), mask_image=mask(), strength=strength, generator=generators(7),
        height=SIZE[0], width=SIZE[1],
    )  # fmt: skip
    made = ours(
        model, image=picture(), mask=mask(), strength=strength, sampler=sampler, paste=False
    )
    assert_close(made, expected)


@pytest.mark.parametrize("strength", [1.0, 0.7])
def test_inpainting_with_nine_channels(folders, strength):
    expected = theirs(
        diffusers.StableDiffusionInpaintPipeline, folders("inpaint"),
        image=picture(), mask_image=mask(), strength=strength, generator=generators(7),
        height=SIZE[0], width=SIZE[1],
    )  # fmt: skip
    model = sdjax.StableDiffusion.from_pretrained(folders("inpaint"))
    made = ours(model, image=picture(), mask=mask(), strength=strength, paste=False)
    assert_close(made, expected)


@pytest.mark.parametrize("guidance_scale", [5.0, 1.0])
def test_editing_by_instruction(folders, guidance_scale):
    options = {"image_guidance_scale": 1.7, "guidance_scale": guidance_scale}
    expected = theirs(
        diffusers.StableDiffusionInstructPix2PixPipeline, folders("pix2pix"),
        image=picture(), generator=generators(7), **options,
    )  # fmt: skip
    model = sdjax.StableDiffusion.from_pretrained(folders("pix2pix"))
    assert_close(ours(model, image=picture(), **options), expected)


def test_depth(folders):
    depth = np.float32(np.random.RandomState(1).rand(*SIZE)) * 9 + 2
    expected = theirs(
        diffusers.StableDiffusionDepth2ImgPipeline, folders("depth"), image=picture(),
        depth_map=torch.from_numpy(depth)[None], strength=0.8, generator=generators(7),
    )  # fmt: skip
    model = sdjax.StableDiffusion.from_pretrained(folders("depth"))
    assert_close(ours(model, image=picture(), depth=depth, strength=0.8), expected)


def test_upscaling(folders):
    small = picture(size=(12, 16))
    expected = theirs(
        diffusers.StableDiffusionUpscalePipeline, folders("x4"), image=small, noise_level=4,
        generator=generators(7),
    )  # fmt: skip
    model = sdjax.StableDiffusion.from_pretrained(folders("x4"))
    assert_close(ours(model, image=small, noise_level=4), expected)


def test_image_to_image_with_sdxl(folders):
    expected = theirs(
        diffusers.StableDiffusionXLImg2ImgPipeline, folders("sdxl"), image=picture(),
        strength=0.5, generator=generators(7),
    )  # fmt: skip
    model = sdjax.StableDiffusion.from_pretrained(folders("sdxl"))
    assert_close(ours(model, image=picture(), strength=0.5), expected)


@pytest.fixture(scope="module")
def control_folders(folders, tmp_path_factory):
    """Two ControlNets of the first model, whose zero convolutions are none."""
    unet = peers.load("sd1", folders("sd1")).unet
    return [
        peers.make_controlnet(unet, tmp_path_factory.mktemp(f"control{seed}"), seed)
        for seed in (1, 2)
    ]


STEERED = {
    "one": [{"scale": 0.8}],
    "later": [{"scale": 1.5, "start": 0.2, "end": 0.7}],
    "guess": [{"guess": True}],
    "two": [{"scale": 0.8}, {"scale": 0.5, "end": 0.5}],
}


@pytest.mark.parametrize("name", STEERED)
def test_controls(model, folders, control_folders, name):
    settings = STEERED[name]
    networks = [diffusers.ControlNetModel.from_pretrained(folder) for folder in control_folders]
    pictures = [picture(5), picture(6)][: len(settings)]

    def given(values):
        return values if len(settings) > 1 else values[0]

    expected = theirs(
        diffusers.StableDiffusionControlNetPipeline, folders("sd1"),
        controlnet=given(networks[: len(settings)]), image=given(pictures),
        generator=generators(7)[0], guess_mode="guess" in settings[0],
        controlnet_conditioning_scale=given([float(s.get("scale", 1)) for s in settings]),
        control_guidance_start=given([s.get("start", 0.0) for s in settings]),
        control_guidance_end=given([s.get("end", 1.0) for s in settings]),
    )  # fmt: skip
    controls = [
        sdjax.Control.from_pretrained(folder)(shown, **options)
        for folder, shown, options in zip(control_folders, pictures, settings, strict=False)
    ]
    made = ours(model, controls=controls, height=SIZE[0], width=SIZE[1])
    assert_close(made, expected)
    assert np.abs(made - ours(model, height=SIZE[0], width=SIZE[1])).max() > 0.01


def test_controls_that_do_not_fit_are_refused(model, folders, control_folders):
    control = sdjax.Control.from_pretrained(control_folders[0])
    with pytest.raises(sdjax.SdjaxError, match="start must lie before end"):
        control(picture(), start=0.5, end=0.5)
    with pytest.raises(sdjax.SdjaxError, match="call the Control in it with one"):
        model.generate(PROMPTS[0], controls=[control])
    other = sdjax.StableDiffusion.from_pretrained(folders("sdxl"))
    with pytest.raises(sdjax.SdjaxError, match="of another family"):
        other.generate(PROMPTS[0], controls=[control(picture())])
    with pytest.raises(sdjax.SdjaxError, match="controls 0: picture must be one, .* got 2"):
        model.generate(PROMPTS[0], controls=[control([picture(), picture()])])
    config = control.network.config
    hint = dataclasses.replace(config, conditioning_embedding_out_channels=(8, 16, 16))
    coarse = sdjax.Control(type(control.network)(hint), control.params)
    with pytest.raises(sdjax.SdjaxError, match="for latents of 4 pixels, the model's have 2"):
        model.generate(PROMPTS[0], controls=[coarse(picture())])


def test_image_of_a_batch_is_the_image_alone(model):
    pictures = [picture(0), picture(1)]
    options = {"strength": 0.6, "mask": mask(), "steps": 5, "output": "numpy"}
    batch = model.generate(PROMPTS, image=pictures, count=2, seed=3, **options)
    for i in range(4):
        alone = model.generate(PROMPTS[i // 2], image=pictures[i // 2], seed=3 + i, **options)
        np.testing.assert_allclose(batch[i], alone[0], atol=2e-5)


def test_what_is_not_masked_comes_back_as_it_was(model):
    white = np.asarray(mask()) > 0
    made = model.generate(PROMPTS[0], image=picture(), mask=mask(), steps=3)[0]
    np.testing.assert_array_equal(np.asarray(made)[~white], np.asarray(picture())[~white])
    assert (np.asarray(made)[white] != np.asarray(picture())[white]).any()


def test_another_condition_of_the_kind_compiles_nothing(model):
    compilations = []
    options = {"image": picture(), "mask": mask(), "steps": 4, "output": "latents"}
    options |= {"height": 8, "width": 8}  # which no other test takes
    model.generate(PROMPTS[0], **options)
    jax.monitoring.register_event_duration_secs_listener(
        lambda name, *_, **__: compilations.append(name) if "backend_compile" in name else None
    )
    other = Image.fromarray(255 - np.asarray(mask()))
    for change in (
        {"image": picture(1)}, {"mask": other}, {"strength": 0.4}, {"steps": 7},
        {"strength": [0.5]}, {"guidance_scale": [3.0]},
    ):  # fmt: skip
        model.generate(PROMPTS[1], **options | change)
    assert compilations == []
    model.generate(PROMPTS[0], **{**options, "mask": None})
    assert len(compilations) == 1


def test_maps_and_masks_are_read_as_a_viewer_shows_them(tmp_path):
    """With all their bits, palettes looked up; one in colours says nothing of what is near."""
    check = inputs.picture_list("F")
    greys = np.arange(48, dtype=np.uint8).reshape(6, 8)
    backwards = Image.fromarray(255 - greys).convert("P")
    backwards.putpalette([255 - i for i in range(256) for _ in range(3)])
    deep = Image.fromarray(greys.astype(np.uint16) * 257 + 3)
    several = [
        (Image.fromarray(greys), greys), (backwards, greys),
        (Image.fromarray(greys).convert("RGB"), greys),
        (Image.fromarray(greys).convert("RGBA"), greys),
        (Image.fromarray(greys).convert("CMYK"), greys), (deep, greys * 257.0 + 3),
        (np.repeat(greys[..., None], 3, axis=-1), greys), (greys / np.float32(7), greys / 7),
    ]  # fmt: skip
    for i, (given, expected) in enumerate(several):
        np.testing.assert_allclose(np.float32(check("depth", given)[0]), expected, atol=1e-5)
        if isinstance(given, Image.Image):
            path = tmp_path / f"{i}.{'tiff' if given.mode == 'CMYK' else 'png'}"
            given.save(path)
            np.testing.assert_allclose(np.float32(check("depth", path)[0]), expected, atol=1e-5)
    colours = np.repeat(np.asarray(mask())[..., None], 3, axis=-1)
    for given in (colours, np.insert(colours, 3, 255, axis=-1), colours[..., :1]):
        (read,) = inputs.picture_list("L")("mask", given)
        assert read == mask()
    with pytest.raises(sdjax.SdjaxError, match="depth is in colours, and nothing says"):
        check("depth", picture())


def test_depths_are_resized_as_by_torch():
    maps = np.float32(np.random.RandomState(0).rand(2, 13, 9))
    theirs = torch.nn.functional.interpolate(
        torch.from_numpy(maps)[:, None], size=(5, 4), mode="bicubic", align_corners=False
    ).numpy()[:, 0]
    low, high = (f(theirs, axis=(1, 2), keepdims=True) for f in (np.min, np.max))
    ours = conditions.depths(maps, (5, 4))[..., 0]
    np.testing.assert_allclose(ours, 2 * (theirs - low) / (high - low) - 1, atol=1e-5)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"strength": 0.5}, "strength is for a picture"),
        ({"image": picture(), "strength": 1.5}, "strength must lie in 0 … 1, got 1.5"),
        ({"image": picture(), "strength": 0.01}, "leaves none of 10 steps"),
        ({"mask": mask()}, "a mask is for a picture"),
        ({"image": picture(), "mask": Image.new("L", SIZE[::-1])}, "mask is black everywhere"),
        ({"image": picture(), "mask": Image.new("L", (32, 32))}, "has the sides 32x32"),
        ({"image": picture(), "mask": np.zeros((*SIZE, 3))}, "mask must be a PIL image, .* 32, 3"),
        ({"image": b"a.png"}, "image must be a PIL image, a path, or an array"),
        ({"height": 2, "width": 2}, "pictures of 2x2 pixels have 4 latents, .* draws 16 at once"),
        ({"image": 3}, "image must be a PIL image, a path, or an array"),
        ({"image": []}, "image is an empty list"),
        ({"image": [picture()] * 3}, "image must be one, one a prompt"),
        ({"image": picture(), "depth": np.ones(SIZE)}, "this model takes no depth"),
        ({"image": picture(), "image_guidance_scale": 2}, "is for models that edit"),
    ],
)
def test_bad_conditions_are_refused(model, arguments, message):
    with pytest.raises(sdjax.SdjaxError, match=message):
        model.generate(PROMPTS[0], steps=10, **arguments)


@pytest.mark.parametrize(
    ("kind", "arguments", "message"),
    [
        ("inpaint", {}, "needs image= and mask="),
        ("pix2pix", {}, "needs image="),
        ("depth", {"image": picture()}, "needs image= and depth="),
    ],
)
def test_what_a_model_needs_is_named(folders, kind, arguments, message):
    model = sdjax.StableDiffusion.from_pretrained(folders(kind))
    with pytest.raises(sdjax.SdjaxError, match=message):
        model.generate(PROMPTS[0], **arguments)


def test_each_image_has_its_own_strength_and_scale(model):
    """In one program, also of another number of steps; each as it is alone, with noise of rows."""
    for options in (
        {"sampler": "euler_a", "mask": mask(), "strength": [0.3, 1.0, 0.7]},
        {"sampler": "plms", "strength": [0.3, 0.9, 0.6]},
    ):
        strengths, scales = options.pop("strength"), [2.0, 7.0, 1.0]
        options |= {"image": picture(), "steps": 10, "output": "numpy"}
        together = model.generate(
            PROMPTS[0], count=3, seed=5, strength=strengths, guidance_scale=scales, **options
        )
        for i in range(3):
            alone = model.generate(
                [PROMPTS[0]] * 3, seed=[5 + i] * 3, strength=strengths[i],
                guidance_scale=[scales[i], 3.0, 3.0], **options,
            )[:1]  # fmt: skip
            np.testing.assert_allclose(together[i], alone[0], atol=5e-5)
    with pytest.raises(sdjax.SdjaxError, match=r"strength must be one, one a prompt"):
        model.generate(PROMPTS[0], count=3, image=picture(), strength=[0.3, 0.4])
