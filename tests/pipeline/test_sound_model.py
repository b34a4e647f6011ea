"""Models of sound against diffusers' pipelines: the same seed gives the same waveform."""

import json
import warnings

import diffusers
import jax
import numpy as np
import pytest
import torch
import transformers

import sdjax
from sdjax.sound import read_sound
from sdjax.sound.files import read_notes
from sdjax.text.vocabulary import byte_symbols
from tests.models.peers import randomised
from tests.weights.small import CLAP, UNET_SOUND, VAE_SOUND, VOCODER

PROMPTS = ["Rain on a tin roof", "a dog barks twice"]
SECONDS = 0.0206  # of no whole frames, of which the latents take two
STEPS = 3


@pytest.fixture(scope="module")
def parts():
    torch.manual_seed(0)
    words = ["<s>", "<pad>", "</s>", "<unk>", "<mask>", *byte_symbols(), "in"]
    tokenizer = transformers.RobertaTokenizer(
        vocab={word: i for i, word in enumerate(words)}, merges=[("i", "n")], model_max_length=64
    )
    text = transformers.ClapTextModelWithProjection(transformers.ClapTextConfig(**CLAP))
    return {
        "vae": randomised(diffusers.AutoencoderKL(**VAE_SOUND)),
        "text_encoder": randomised(text),
        "tokenizer": tokenizer,
        "unet": randomised(diffusers.UNet2DConditionModel(**UNET_SOUND)),
        "scheduler": diffusers.DDIMScheduler(
            beta_start=0.0015, beta_end=0.0195, beta_schedule="scaled_linear", clip_sample=False,
            set_alpha_to_one=False, steps_offset=1,
        ),
        "vocoder": randomised(transformers.SpeechT5HifiGan(
            transformers.SpeechT5HifiGanConfig(**VOCODER)
        )),
    }  # fmt: skip


@pytest.fixture(scope="module")
def peer(parts):
    pipeline = diffusers.AudioLDMPipeline(**parts)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


@pytest.fixture(scope="module")
def folder(peer, tmp_path_factory):
    path = tmp_path_factory.mktemp("audioldm")
    peer.save_pretrained(path)
    return path


@pytest.fixture(scope="module")
def model(folder):
    return sdjax.StableDiffusion.from_pretrained(folder)


def psnr(ours, theirs):
    error = np.mean((ours - theirs) ** 2)
    return 10 * np.log10(np.max(np.abs(theirs)) ** 2 / error)


def of_theirs(pipeline, **more):
    return pipeline(
        PROMPTS, SECONDS, STEPS, generator=[torch.Generator().manual_seed(s) for s in (5, 6)], **more
    ).audios


def test_a_seed_gives_diffusers_waveform(model, peer):
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)  # nothing is cut off
        ours = model.generate(PROMPTS, seconds=SECONDS, steps=STEPS, seed=5, noise="torch")
    theirs = of_theirs(peer)
    assert [sound.info["seed"] for sound in ours] == [5, 6]
    assert {sound.samples.shape for sound in ours} == {theirs[0].shape} == {(329,)}
    assert ours[0].rate == 16_000 and ours[0].mel.shape == (42, 16)
    assert psnr(np.stack([sound.samples for sound in ours]), theirs) > 60
    assert np.abs(theirs[0] - theirs[1]).max() > 0.05 * np.abs(theirs).max()  # not of the weights


def test_negative_prompts_and_guidance_compile_nothing(model, peer):
    options = {"guidance_scale": 4.0, "negative_prompt": ["wind", "music"]}
    compilations = []
    jax.monitoring.register_event_duration_secs_listener(
        lambda name, *_, **__: compilations.append(name) if "backend_compile" in name else None
    )
    ours = model.generate(
        PROMPTS, seconds=SECONDS, steps=STEPS, seed=5, noise="torch", output="numpy", **options
    )
    assert compilations == []
    assert psnr(ours, of_theirs(peer, **options)) > 60


def test_musicldm_is_read_and_sounds_as_in_diffusers(parts, tmp_path, model):
    """Its text encoder lies in a whole CLAP, whose vectors are normalised there."""
    audio = transformers.ClapAudioConfig(
        spec_size=16, window_size=2, patch_size=2, num_mel_bins=8, patch_embeds_hidden_size=8,
        depths=[1, 1], num_attention_heads=[1, 1], hidden_size=16, num_hidden_layers=2,
        projection_dim=16,
    )  # fmt: skip
    config = transformers.ClapConfig(
        text_config=CLAP, audio_config=audio.to_dict(), projection_dim=16
    )
    whole = transformers.ClapModel(config)
    state = parts["text_encoder"].state_dict()
    missing, extra = whole.load_state_dict(state, strict=False)
    assert not extra and all(name.startswith(("audio", "logit")) for name in missing)
    extractor = transformers.ClapFeatureExtractor(feature_size=8)
    theirs = diffusers.MusicLDMPipeline(
        **{**parts, "text_encoder": whole}, feature_extractor=extractor
    )
    theirs.save_pretrained(tmp_path / "theirs")
    ours = sdjax.StableDiffusion.from_pretrained(tmp_path / "theirs")
    assert (ours.guidance_scale, model.guidance_scale) == (2.0, 2.5)
    sound, same = (
        one.generate(PROMPTS[0], seconds=SECONDS, steps=STEPS, guidance_scale=2.0, output="numpy")
        for one in (ours, model)
    )
    assert np.array_equal(sound, same)
    theirs.set_progress_bar_config(disable=True)
    # diffusers takes the features of transformers 4, which had nothing around them.
    features = whole.get_text_features
    whole.get_text_features = lambda *given, **more: features(*given, **more).pooler_output
    drawn = ours.generate(
        PROMPTS, seconds=SECONDS, steps=STEPS, seed=5, noise="torch", output="numpy")
    assert psnr(drawn, of_theirs(theirs, guidance_scale=2.0)) > 60


def test_saved_models_are_diffusers(model, peer, folder, tmp_path):
    model.save_pretrained(tmp_path)
    index = json.loads((tmp_path / "model_index.json").read_text())
    wanted = json.loads((folder / "model_index.json").read_text())
    assert {key: index[key] for key in wanted if key[0] != "_"} == {
        key: value for key, value in wanted.items() if key[0] != "_"
    }
    again = diffusers.AudioLDMPipeline.from_pretrained(tmp_path)
    again.set_progress_bar_config(disable=True)
    assert np.array_equal(of_theirs(again), of_theirs(peer))
    with pytest.raises(sdjax.SdjaxError, match="written as a folder"):
        model.save_single_file(tmp_path / "a.safetensors")


def test_a_sound_does_not_depend_on_its_batch(model):
    both = model.generate(PROMPTS, seconds=SECONDS, steps=STEPS, seed=5, output="numpy")
    (alone,) = model.generate(PROMPTS[1], seconds=SECONDS, steps=STEPS, seed=6, output="numpy")
    assert np.abs(both[1] - alone).max() < 1e-5


@pytest.mark.parametrize(("given", "said"), [
    ({"height": 64}, "takes no height"),
    ({"seconds": 0.0001}, "seconds must be at least 0.001"),
    ({"prompt": "(rain:1.3)"}, "no part weighs more"),
    ({"clip_skip": 1}, "takes no clip_skip"),
    ({"frames": 4}, "takes no frames"),
])  # fmt: skip
def test_what_sound_cannot_have_is_one_line(model, given, said):
    with pytest.raises(sdjax.SdjaxError, match=said):
        model.generate(**{"prompt": "rain", **given})


def test_pictures_have_no_seconds():
    emoji = sdjax.StableDiffusion.from_pretrained(sdjax.EMOJI)
    with pytest.raises(sdjax.SdjaxError, match="models of sound"):
        emoji.generate("a cat", seconds=1)


def test_the_command_writes_sound(folder, tmp_path, capsys):
    from sdjax.cli import main

    options = ["--model", str(folder), "--prompt", "rain", "--out", str(tmp_path)]
    assert main(["sample", *options, "--seconds", "0.02", "--steps", "3", "--seed", "7"]) == 0
    sound, rate = read_sound(tmp_path / "00000.wav")
    assert (rate, len(sound)) == (16_000, 320)
    notes = read_notes(tmp_path / "00000.wav")
    assert (notes["prompt"], notes["seed"], notes["steps"]) == ("rain", 7, 3)
    assert (tmp_path / "00000-sheet.png").is_file()
    capsys.readouterr()
    assert main(["sample", *options, "--format", "png"]) != 0
    assert "one of wav, flac" in capsys.readouterr().err
