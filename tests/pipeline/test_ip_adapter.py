"""IP-Adapters as conditions, against diffusers' pipelines with them."""

import jax
import numpy as np
import pytest
import torch
import transformers
from safetensors.torch import save_file

import sdjax
from sdjax.models.ip_adapter import IPAdapterConfig, cross_attentions
from sdjax.models.unet_config import UNetConfig
from tests.models.peers import randomised
from tests.models.test_clip_vision import SMALL
from tests.models.test_ip_adapter import random_adapter
from tests.pipeline import peers
from tests.pipeline.peers import PROMPTS, assert_close
from tests.pipeline.test_t2i_adapter import SIZE, STEPS, ours, picture

PROJECTED = "CLIPVisionModelWithProjection"
# (model, kind of projection, pictures shown together)
CASES = [("sd1", "plain", 1), ("sd1", "plus", 2), ("sdxl", "plain", 2), ("sdxl", "plus", 1)]


def config_of(model, kind):
    unet = UNetConfig.from_dict(peers.UNETS[model])
    layers = tuple(width for _, width in cross_attentions(unet))
    width = SMALL.projection_dim if kind == "plain" else SMALL.hidden_size
    more = {} if kind == "plain" else {"width": 16, "heads": 1, "depth": 4}
    return IPAdapterConfig(kind, width, unet.context_width, layers, tokens=4, **more)


@pytest.fixture(scope="module")
def finished():
    """Beside each pipeline an image encoder, as IP-Adapters are published."""
    return lambda kind, folder: encoder(folder)


def encoder(folder):
    torch.manual_seed(0)
    config = {**SMALL.to_dict(), "architectures": [PROJECTED]}
    peer = transformers.CLIPVisionModelWithProjection(transformers.CLIPVisionConfig(**config))
    randomised(peer).save_pretrained(folder / "image_encoder")


def adapter(folder, model, kind, seed=0):
    """(diffusers' dictionaries, ours)."""
    _, files = random_adapter(config_of(model, kind), seed)
    path = folder / f"ip-adapter-{kind}-{seed}.safetensors"
    save_file({f"{a}.{b}": t for a, part in files.items() for b, t in part.items()}, path)
    return files, sdjax.IPAdapter.from_pretrained(path)


def theirs(model, folder, files, scales, shown, **options):
    size = SMALL.image_size
    parts = {
        "image_encoder": transformers.CLIPVisionModelWithProjection.from_pretrained(
            folder / "image_encoder"
        ),
        "feature_extractor": transformers.CLIPImageProcessor(size=size, crop_size=size),
    }
    pipeline = peers.quiet(peers.CLASSES[model].from_pretrained(folder, **parts))
    several = [None] * len(files)
    pipeline.load_ip_adapter(files, subfolder=several, weight_name=several,
                             image_encoder_folder=None)  # fmt: skip
    pipeline.set_ip_adapter_scale(scales)
    options = {"num_inference_steps": STEPS, "guidance_scale": 5.0, "output_type": "np", **options}
    height, width = SIZE
    return pipeline(
        PROMPTS[0], ip_adapter_image=shown, height=height, width=width,
        generator=torch.Generator().manual_seed(7), **options,
    ).images  # fmt: skip


@pytest.mark.parametrize(("model", "kind", "count"), CASES)
def test_one_adapter(model, kind, count, models, folders):
    files, own = adapter(folders(model), model, kind)
    shown = [picture(5 + i, (40, 32)) for i in range(count)]
    expected = theirs(model, folders(model), [files], [0.7], [shown])
    made = ours(models(model), controls=[own([shown], scale=0.7)])
    assert_close(made, expected)
    assert np.abs(made - ours(models(model))).max() > 0.01


def test_two_adapters_add_up(models, folders):
    folder = folders("sd1")
    (first, a), (second, b) = (adapter(folder, "sd1", kind, 3) for kind in ("plain", "plus"))
    shown = [picture(5), picture(6)]
    expected = theirs("sd1", folder, [first, second], [0.7, 0.4], [[one] for one in shown])
    made = ours(models("sd1"), controls=[a(shown[0], 0.7), b(shown[1], 0.4)])
    assert_close(made, expected)


def test_without_guidance_there_is_no_empty_picture(models, folders):
    files, own = adapter(folders("sd1"), "sd1", "plain")
    expected = theirs(
        "sd1", folders("sd1"), [files], [1.0], [[picture(5)]], guidance_scale=1.0
    )
    assert_close(ours(models("sd1"), controls=[own(picture(5))], guidance_scale=1), expected)


def test_images_of_a_batch_and_what_compiles(models, folders):
    """Each image its own picture; another picture, scale or share compiles nothing."""
    model, (_, own) = models("sd1"), adapter(folders("sd1"), "sd1", "plain")
    pictures, options = [picture(5), picture(6)], {"steps": 4, "noise": None}
    together = ours(model, controls=[own(pictures)], count=2, **options)
    alone = ours(model, controls=[own(pictures[1])], seed=8, **options)
    np.testing.assert_allclose(together[1], alone[0], atol=2e-5)
    plain = ours(model, **options)
    compilations = []
    jax.monitoring.register_event_duration_secs_listener(
        lambda name, *_, **__: compilations.append(name) if "backend_compile" in name else None
    )
    for changed in (own(picture(1)), own(picture(), 0.3), own(picture(), 1, 0.2, 0.5)):
        ours(model, controls=[changed], **options)
    off = ours(model, controls=[own(picture(), 0)], **options)
    assert compilations == []
    np.testing.assert_allclose(off, plain, atol=1e-5)


def test_adapters_that_do_not_fit_are_refused(models, folders, tmp_path):
    folder = folders("sd1")
    _, own = adapter(folder, "sd1", "plain")
    with pytest.raises(sdjax.SdjaxError, match="call the IPAdapter in it with one"):
        ours(models("sd1"), controls=own)
    with pytest.raises(sdjax.SdjaxError, match="of another family than the model: it is for"):
        ours(models("sdxl"), controls=[own(picture())])
    with pytest.raises(sdjax.SdjaxError, match="same number of pictures to each image, got 1 and 2"):
        own([[picture()], [picture(), picture()]])
    with pytest.raises(sdjax.SdjaxError, match="picture must be a PIL image"):
        own(3)
    with pytest.raises(sdjax.SdjaxError, match="controls 0: picture must be one, .* got 3"):
        ours(models("sd1"), controls=[own([picture()] * 3)])
    file = folder / "ip-adapter-plain-0.safetensors"
    (tmp_path / file.name).write_bytes(file.read_bytes())
    with pytest.raises(sdjax.SdjaxError, match="needs the picture encoder .* image_encoder"):
        sdjax.IPAdapter.from_pretrained(tmp_path)
    for changed, message in (
        ({"architectures": ["CLIPVisionModel"]}, "expected a CLIPVisionModelWithProjection"),
        ({"architectures": [PROJECTED], "projection_dim": 8}, "takes 24 numbers .* gives 8"),
    ):
        config = {**SMALL.to_dict(), **changed}
        kind = getattr(transformers, config["architectures"][0])
        kind(transformers.CLIPVisionConfig(**config)).save_pretrained(tmp_path / "other")
        with pytest.raises(sdjax.SdjaxError, match=message):
            sdjax.IPAdapter.from_pretrained(tmp_path, image_encoder=tmp_path / "other")
