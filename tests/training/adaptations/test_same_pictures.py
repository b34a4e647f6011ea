"""Exported adaptations: the picture that diffusers makes of a seed with them is ours."""

import diffusers
import jax
import numpy as np
import pytest
import torch

import sdjax
from sdjax.training import adaptations
from tests.pipeline import peers

PROMPTS = {"word": "a <new> circle"}
SIZE = 16
VALUES = {
    "lora": adaptations.LoRA(rank=3, alpha=2.0, text_encoder=True, conv_rank=2, conv_alpha=1.5),
    "dora": adaptations.LoRA(rank=2, targets=("transformers", "convolutions"), dora=True),
    "word": adaptations.LearnedWord("<new>", vectors=2),
    "control": adaptations.ControlNet(),
}
CASES = [("sd1", name) for name in VALUES] + [
    pytest.param("sdxl", name, marks=pytest.mark.full) for name in ("lora", "dora", "control")]


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    made = {}

    def of(kind):
        if kind not in made:
            made[kind] = peers.make(kind, tmp_path_factory.mktemp(kind) / "model")
        return made[kind]

    return of


@pytest.mark.parametrize(("kind", "name"), CASES)
def test_the_picture_is_diffusers(kind, name, folders, tmp_path):
    folder, prompt = folders(kind), PROMPTS.get(name, "a red circle")
    ours = sdjax.StableDiffusion.from_pretrained(folder)
    theirs = peers.load(kind, folder)
    adaptation, networks = VALUES[name].fitted(adaptations.Networks.of(ours))
    random = np.random.default_rng(0)
    tree = jax.tree.map(
        lambda x: np.asarray(x) + 0.05 * random.normal(size=x.shape).astype(np.float32),
        adaptation.init(jax.random.key(0), ours.params))
    place = adaptation.export(tree, tmp_path, ours, networks)
    asked, given = {}, {}
    if name == "control":
        network = diffusers.ControlNetModel.from_pretrained(place)
        kinds = diffusers.StableDiffusionControlNetPipeline, \
            diffusers.StableDiffusionXLControlNetPipeline
        theirs = peers.quiet(kinds[kind == "sdxl"](**theirs.components, controlnet=network))
        picture = random.random((SIZE, SIZE, 3), np.float32)
        given["image"] = torch.from_numpy(picture.transpose(2, 0, 1)[None].copy())
        asked["controls"] = [sdjax.Control.from_pretrained(place)(2 * picture - 1)]
    elif name == "word":
        ours.load_textual_inversion(place, token="<new>")
        theirs.load_textual_inversion(str(place))
    else:
        ours.load_lora(place)
        if name == "dora":
            place = tmp_path / "peft" / "pytorch_lora_weights.safetensors"
        theirs.load_lora_weights(str(place))
    found = ours.generate(
        prompt, steps=4, guidance_scale=3.0, seed=7, sampler="ddim", noise="torch",
        output="numpy", height=SIZE, width=SIZE, progress=False, **asked)
    wanted = peers.images(
        theirs, [prompt], num_inference_steps=4, guidance_scale=3.0, height=SIZE, width=SIZE,
        generator=[torch.Generator().manual_seed(7)], **given)
    peers.assert_close(found, wanted)
    plain = peers.images(
        peers.load(kind, folder), [prompt], num_inference_steps=4, guidance_scale=3.0, height=SIZE,
        width=SIZE, generator=[torch.Generator().manual_seed(7)])
    assert np.abs(plain - wanted).max() > 0.002  # it does something
