"""T2I-Adapters as conditions, against diffusers' pipelines with them."""

import diffusers
import jax
import numpy as np
import pytest
import torch
from PIL import Image

import sdjax
from tests.models.peers import randomised
from tests.pipeline import peers
from tests.pipeline.peers import PROMPTS, assert_close

SIZE = 24, 32  # height and width
STEPS = 6
ADAPTERS = {
    "sd1": {"channels": [16, 32], "num_res_blocks": 1, "downscale_factor": 2},
    "grey": {"in_channels": 1, "channels": [16, 32], "num_res_blocks": 1, "downscale_factor": 2},
    "sdxl_levels": {
        "channels": [16, 32, 32, 32],
        "num_res_blocks": 1,
        "downscale_factor": 4,
        "adapter_type": "full_adapter_xl",
    },
}


def picture(seed=0, size=SIZE):
    small = np.random.RandomState(seed).randint(0, 256, (4, 4, 3), np.uint8)
    return Image.fromarray(small).resize(size[::-1], Image.Resampling.BICUBIC)


@pytest.fixture(scope="module")
def adapters(tmp_path_factory):
    """(diffusers', ours) of a kind and seed."""

    def adapter(kind, seed=0):
        torch.manual_seed(seed)
        peer = randomised(diffusers.T2IAdapter(**ADAPTERS[kind]), seed)
        folder = tmp_path_factory.mktemp("adapter")
        peer.save_pretrained(folder)
        return peer, sdjax.T2IAdapter.from_pretrained(folder)

    return adapter


def theirs(kind, folder, adapter, shown, **options):
    name = "StableDiffusionXLAdapterPipeline" if "xl" in kind else "StableDiffusionAdapterPipeline"
    pipeline = getattr(diffusers, name).from_pretrained(folder, adapter=adapter)
    options = {"num_inference_steps": STEPS, "guidance_scale": 5.0, "output_type": "np", **options}
    generator = torch.Generator().manual_seed(7)
    return peers.quiet(pipeline)(PROMPTS[0], image=shown, generator=generator, **options).images


def ours(model, **options):
    height, width = SIZE
    options = {"height": height, "width": width, "steps": STEPS, "guidance_scale": 5.0, **options}
    options = {"seed": 7, "noise": "torch", "output": "numpy", **options}
    return model.generate(PROMPTS[0], **options)


@pytest.mark.parametrize("kind", ADAPTERS)
def test_one_adapter(kind, models, folders, adapters):
    name = kind if "xl" in kind else "sd1"
    peer, adapter = adapters(kind)
    shown, late = picture(5), {}
    if kind == "grey":
        shown = shown.convert("L")
    if "xl" in kind:  # the one that knows an end: the factor is a share of the steps
        late = {"adapter_conditioning_factor": 0.7}
    expected = theirs(
        name, folders(name), peer, shown, adapter_conditioning_scale=0.8, **late
    )
    steered = adapter(shown, scale=0.8, end=0.7 if late else 1.0)
    made = ours(models(name), controls=[steered])
    assert_close(made, expected)
    assert np.abs(made - ours(models(name))).max() > 0.01


def test_two_adapters_add_up(models, folders, adapters):
    (first, a), (second, b) = adapters("sd1", 1), adapters("sd1", 2)
    expected = theirs(
        "sd1", folders("sd1"), [first, second], [picture(5), picture(6)],
        adapter_conditioning_scale=[0.8, 0.5],
    )  # fmt: skip
    made = ours(models("sd1"), controls=[a(picture(5), 0.8), b(picture(6), 0.5)])
    assert_close(made, expected)


def test_images_of_a_batch_and_what_compiles(models, adapters):
    """Each image its own picture; another picture, scale or share compiles nothing."""
    model, (_, adapter) = models("sd1"), adapters("sd1")
    pictures, options = [picture(5), picture(6)], {"steps": 4, "noise": None}
    together = ours(model, controls=[adapter(pictures)], count=2, **options)
    alone = ours(model, controls=[adapter(pictures[1])], seed=8, **options)
    np.testing.assert_allclose(together[1], alone[0], atol=2e-5)
    compilations = []
    jax.monitoring.register_event_duration_secs_listener(
        lambda name, *_, **__: compilations.append(name) if "backend_compile" in name else None
    )
    for steered in (adapter(picture(1)), adapter(picture(), 0.3), adapter(picture(), 1, 0.2, 0.5)):
        ours(model, controls=[steered], **options)
    assert compilations == []


def test_an_adapter_that_is_never_on_changes_nothing(models, adapters):
    model, (_, adapter) = models("sd1"), adapters("sd1")
    np.testing.assert_allclose(
        ours(model, controls=[adapter(picture(), 0)]), ours(model), atol=1e-5
    )


def test_adapters_that_do_not_fit_are_refused(models, adapters):
    model, (_, adapter) = models("sd1"), adapters("sd1")
    with pytest.raises(sdjax.SdjaxError, match="call the T2IAdapter in it with one"):
        ours(model, controls=[adapter])
    other = adapters("sdxl_levels")[1]
    message = "of another family than the model: its features are 16 at 1/4, .* the model takes 16"
    with pytest.raises(sdjax.SdjaxError, match=message):
        ours(model, controls=[other(picture())])
    with pytest.raises(sdjax.SdjaxError, match="height must be a multiple of 4 .* nearest is 24"):
        ours(models("sdxl_levels"), controls=[other(picture())], height=26)
    three = adapter([picture()] * 3)
    with pytest.raises(sdjax.SdjaxError, match="controls 0: picture must be one, .* got 3"):
        ours(model, controls=[three])
    with pytest.raises(sdjax.SdjaxError, match="picture must be a PIL image"):
        adapter(3)
