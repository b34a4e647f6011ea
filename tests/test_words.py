"""What other programs call the arguments of what loads and saves."""

import inspect
import re

import pytest

import sdjax
from sdjax.diffusion.samplers import option_names
from sdjax.pipeline.plans.request import ARGUMENTS
from sdjax.words import FILES, WORDS, hint, told_words

LOADERS = [
    sdjax.StableDiffusion.from_pretrained, sdjax.StableDiffusion.from_single_file,
    sdjax.StableDiffusion.save_pretrained, sdjax.StableDiffusion.load_lora,
    sdjax.StableDiffusion.load_textual_inversion, sdjax.Control.from_pretrained,
    sdjax.UNet.from_pretrained, sdjax.VAE.from_pretrained, sdjax.TextEncoder.from_pretrained,
    sdjax.UNet.save_pretrained, sdjax.Tokenizer.from_pretrained,
]  # fmt: skip


def refusal(function, *values, **named):
    with pytest.raises(sdjax.SdjaxError) as refused:
        function(*values, **named)
    assert "\n" not in str(refused.value)
    return str(refused.value)


def test_loading_by_the_words_of_diffusers():
    pipeline = sdjax.StableDiffusion
    line = refusal(pipeline.from_pretrained, "absent", torch_dtype="float16")
    assert line == "from_pretrained has no argument 'torch_dtype': it is dtype here"
    assert "HF_HUB_CACHE" in refusal(pipeline.from_pretrained, "absent", cache_dir="here")
    assert "give generate safety_checker=" in refusal(
        pipeline.from_pretrained, "a", safety_checker=None
    )
    assert "controls=[Control" in refusal(pipeline.from_pretrained, "a", controlnet=None)
    assert "it is config here" in refusal(pipeline.from_single_file, "a", original_config="a.yaml")
    assert "did you mean revision?" in refusal(pipeline.from_pretrained, "absent", revison="main")
    assert "there are " in refusal(pipeline.from_pretrained, "absent", colour="red")
    assert "it is part here" in refusal(sdjax.UNet.from_pretrained, "absent", subfolder="unet")
    assert "it is dtype here" in refusal(sdjax.VAE.from_pretrained, "absent", torch_dtype=None)
    assert "it is weight here" in refusal(pipeline.load_lora, None, "a", lora_scale=1)
    assert "there are path, token" in refusal(pipeline.load_textual_inversion, None, "a", what=1)


@pytest.mark.parametrize("function", LOADERS)
def test_every_loader_tells_them(function):
    assert function.__wrapped__ and function.__doc__
    names = set(inspect.signature(function).parameters)
    for word in set(FILES) - names:
        line = refusal(function, **{word: 0})
        assert re.search(f"{word!r}: (it is|did you mean|there are) ", line)


def test_options_of_a_network_pass():
    assert told_words(lambda source, **options: options)("a", remat=True) == {"remat": True}


def test_a_reference_picture_is_a_control():
    assert WORDS["ip_adapter_image"] == "controls"


@pytest.mark.parametrize(
    "pipeline",
    [
        "StableDiffusionPipeline", "StableDiffusionImg2ImgPipeline",
        "StableDiffusionXLInpaintPipeline", "StableDiffusionControlNetInpaintPipeline",
        "StableDiffusionXLAdapterPipeline", "StableDiffusionDepth2ImgPipeline",
        "StableDiffusionInstructPix2PixPipeline", "StableDiffusionUpscalePipeline",
        "LatentConsistencyModelPipeline",
    ],
)  # fmt: skip
def test_each_argument_of_diffusers_is_ours_or_answered_by_ours(pipeline):
    diffusers = pytest.importorskip("diffusers")
    known = ARGUMENTS | set(option_names())
    for word in inspect.signature(getattr(diffusers, pipeline).__call__).parameters:
        if word not in known | {"self", "kwargs", "masked_image_latents"}:
            assert "did you mean" not in hint(word, known) and hint(word, known), word
