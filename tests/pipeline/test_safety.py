"""The safety checker: diffusers' scores and flags, and what it does to pictures."""

import numpy as np
import pytest
import torch
import transformers
from diffusers.pipelines.stable_diffusion.safety_checker import StableDiffusionSafetyChecker
from PIL import Image

import sdjax
from sdjax.data.clip_picture import clip_picture
from sdjax.pipeline.results import safety
from tests.models.peers import nchw
from tests.weights.small import random_pipeline

VISION = {
    "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2,
    "image_size": 30, "patch_size": 10,
}  # fmt: skip


@pytest.fixture(scope="module")
def peer():
    """Random concepts, with thresholds such that one of each kind is found in half the pictures."""
    torch.manual_seed(0)
    config = transformers.CLIPConfig(
        text_config={}, vision_config=VISION, projection_dim=12, attn_implementation="eager"
    )
    made = StableDiffusionSafetyChecker(config).eval()
    for name, parameter in made.named_parameters():
        torch.nn.init.normal_(parameter, std=0.5)
    prepared = np.stack([clip_picture(one, VISION["image_size"]) for one in pictures()])
    with torch.no_grad():
        found = made.visual_projection(made.vision_model(nchw(prepared))[1])
    for name in ("concept_embeds", "special_care_embeds"):
        near = torch.cosine_similarity(found[:, None], getattr(made, name)[None], dim=-1)
        thresholds = getattr(made, f"{name}_weights").data
        thresholds[:] = near.max(dim=0).values + 0.05
        thresholds[1] = near[:, 1].sort().values[2:4].mean()
    return made


@pytest.fixture(scope="module")
def folder(peer, tmp_path_factory):
    home = tmp_path_factory.mktemp("model")
    peer.save_pretrained(home / "safety_checker")
    return home


def pictures(count=6):
    generator = np.random.RandomState(1)
    drawn = [generator.randint(0, 256, (4, 5, 3), np.uint8) for _ in range(count)]
    return [Image.fromarray(one).resize((50, 40)) for one in drawn]


def theirs(peer, shown):
    """(special scores, concept scores, flags) of diffusers' own lines."""
    found = []
    # Its method keeps the scores to itself: what it rounds is caught on the way.
    import diffusers.pipelines.stable_diffusion.safety_checker as module

    def caught(value, digits):
        found.append(float(value))
        return round(value, digits)

    module.round = caught
    try:
        prepared = np.stack([clip_picture(one, VISION["image_size"]) for one in shown])
        images = np.ones((len(shown), 2, 2, 3))
        _, flags = peer(nchw(prepared), images)
    finally:
        del module.round
    scores = np.array(found).reshape(len(shown), 20)
    return scores[:, :3], scores[:, 3:], flags


def test_scores_and_flags_are_those_of_diffusers(peer, folder):
    shown = pictures()
    special, concepts, flags = theirs(peer, shown)
    checker = sdjax.SafetyChecker.from_pretrained(folder)
    verdict = checker.check(shown)
    np.testing.assert_allclose(verdict.special, special, atol=1e-5)
    np.testing.assert_allclose(verdict.concepts, concepts, atol=1e-5)
    assert list(verdict.flagged) == flags and len(set(flags)) == 2
    assert 0 < (special > 5e-4).any(axis=1).sum() < len(shown)  # so that special care is taken
    np.testing.assert_array_equal(checker.check(shown[4:5]).concepts[0], verdict.concepts[4])


def test_it_tells_and_changes_nothing_unless_told(folder, monkeypatch):
    model = random_pipeline()
    options = {"count": 3, "steps": 2, "seed": 5, "guidance_scale": 1}
    plain = model.generate("red apple", **options)
    checker = sdjax.SafetyChecker.from_pretrained(folder)
    verdicts = checker.check(plain).flagged
    made = model.generate("red apple", safety_checker=checker, **options)
    assert [image.info["nsfw"] for image in made] == list(verdicts)
    assert [image.tobytes() for image in made] == [image.tobytes() for image in plain]
    assert "nsfw" not in plain[0].info
    flags = np.array([True, False, True])
    monkeypatch.setattr(safety.Verdict, "flagged", flags)
    black = sdjax.SafetyChecker.from_pretrained(folder / "safety_checker", blank=True)
    made = model.generate("red apple", safety_checker=black, **options)
    assert [image.info["nsfw"] for image in made] == list(flags)
    assert [image.info["seed"] for image in made] == [5, 6, 7]
    assert [np.asarray(image).any() for image in made] == [False, True, False]
    np.testing.assert_array_equal(np.asarray(made[1]), np.asarray(plain[1]))
    with pytest.raises(sdjax.SdjaxError, match='it needs output="pil"'):
        model.generate("red apple", safety_checker=checker, output="numpy")
    with pytest.raises(sdjax.SdjaxError, match="safety_checker must be SafetyChecker"):
        model.generate("red apple", safety_checker=True)


def test_what_is_no_checker_is_refused(tmp_path):
    config = transformers.CLIPVisionConfig(**VISION, projection_dim=12)
    plain = transformers.CLIPVisionModelWithProjection(config)
    plain.save_pretrained(tmp_path)
    with pytest.raises(sdjax.SdjaxError, match="no safety checker: its tensor concept_embeds is"):
        sdjax.SafetyChecker.from_pretrained(tmp_path)
