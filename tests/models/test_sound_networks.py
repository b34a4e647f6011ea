"""Networks of sound against transformers and diffusers, and their files."""

import json

import diffusers
import numpy as np
import pytest
import torch
import transformers

from sdjax.errors import SdjaxError
from sdjax.weights import UNet
from sdjax.weights.sound import ClapText, Vocoder
from tests.models.peers import randomised
from tests.weights.small import CLAP, UNET_SOUND, VOCODER

CLOSE = 1e-4  # of the largest value


def near(ours, theirs):
    ours, theirs = np.asarray(ours), theirs.detach().numpy()
    assert ours.shape == theirs.shape
    assert np.abs(ours - theirs).max() < CLOSE * np.abs(theirs).max()


@pytest.fixture(scope="module")
def vocoder():
    torch.manual_seed(0)
    made = transformers.SpeechT5HifiGan(transformers.SpeechT5HifiGanConfig(**VOCODER))
    made.mean.copy_(torch.linspace(-1, 1, 16))
    made.scale.copy_(torch.linspace(0.5, 2, 16))
    return randomised(made)


MEL = np.float32(np.random.default_rng(0).normal(size=(2, 9, 16)))


@pytest.mark.parametrize("normalised", [False, True])
def test_hifigan_is_transformers(vocoder, tmp_path, normalised):
    vocoder.config.normalize_before = normalised
    vocoder.save_pretrained(tmp_path / "theirs")
    network, params = Vocoder.from_pretrained(tmp_path / "theirs")
    theirs = vocoder(torch.tensor(MEL))
    near(network.apply({"params": params}, MEL), theirs)
    network.save_pretrained(params, tmp_path / "ours")
    again = transformers.SpeechT5HifiGan.from_pretrained(tmp_path / "ours")
    assert torch.equal(again(torch.tensor(MEL)), theirs)


@pytest.mark.parametrize("newer", [False, True])
def test_the_authors_files_have_weight_norms(vocoder, tmp_path, newer):
    """As jik876's: generator's state under other names, lengths and directions of weights."""
    vocoder.config.normalize_before = False
    theirs, names = vocoder(torch.tensor(MEL)), ("weight_g", "weight_v")
    if newer:
        names = tuple(f"parametrizations.weight.original{i}" for i in (0, 1))
    state = {}
    for key, tensor in vocoder.state_dict().items():
        key = key.replace("upsampler.", "ups.")
        if key.endswith(".weight"):
            length = tensor.norm(dim=(1, 2), keepdim=True)
            state[key.removesuffix("weight") + names[0]] = length
            state[key.removesuffix("weight") + names[1]] = 3 * tensor
        elif key not in ("mean", "scale"):
            state[key] = tensor
    torch.save({"generator": state}, tmp_path / "g_1")
    given = {key: value for key, value in VOCODER.items() if key != "model_in_dim"}
    (tmp_path / "config.json").write_text(json.dumps(
        {**given, "num_mels": 16, "resblock": "1", "segment_size": 8192}
    ))  # fmt: skip
    network, params = Vocoder.from_pretrained(tmp_path / "g_1", config=tmp_path)
    near(network.apply({"params": params}, MEL), theirs)
    with pytest.raises(SdjaxError, match="give config="):
        Vocoder.from_pretrained(tmp_path / "g_1")
    del state["ups.0." + names[0]]
    torch.save({"generator": state}, tmp_path / "g_2")
    with pytest.raises(SdjaxError, match="only one of length and direction"):
        Vocoder.from_pretrained(tmp_path / "g_2", config=tmp_path)
    (tmp_path / "config.json").write_text(json.dumps({"num_mels": 16, "resblock": "2"}))
    with pytest.raises(SdjaxError, match="resblock"):
        Vocoder.from_pretrained(tmp_path / "g_1", config=tmp_path)


@pytest.fixture(scope="module")
def ids():
    rng = np.random.default_rng(0)
    made = rng.integers(4, CLAP["vocab_size"], (2, 12)).astype(np.int32)
    made[0, 7:] = CLAP["pad_token_id"]
    return made


def test_clap_is_transformers(ids, tmp_path):
    torch.manual_seed(0)
    theirs = transformers.ClapTextModelWithProjection(transformers.ClapTextConfig(**CLAP))
    theirs = randomised(theirs)
    theirs.save_pretrained(tmp_path / "theirs")
    network, params = ClapText.from_pretrained(tmp_path / "theirs")
    output = network.apply({"params": params}, ids)
    tokens = torch.tensor(ids).long()
    given = theirs(tokens, attention_mask=(tokens != CLAP["pad_token_id"]).long())
    near(output.pooled, given.text_embeds)
    seen = ids != CLAP["pad_token_id"]
    ours, wanted = np.asarray(output.last_hidden_state), given.last_hidden_state.detach().numpy()
    assert np.abs(ours - wanted)[seen].max() < CLOSE * np.abs(wanted).max()
    network.save_pretrained(params, tmp_path / "ours")
    again = transformers.ClapTextModelWithProjection.from_pretrained(tmp_path / "ours")
    mask = (tokens != CLAP["pad_token_id"]).long()
    assert torch.equal(again(tokens, attention_mask=mask).text_embeds, given.text_embeds)


def test_the_sound_unet_is_diffusers(tmp_path):
    torch.manual_seed(0)
    theirs = randomised(diffusers.UNet2DConditionModel(**UNET_SOUND))
    theirs.save_pretrained(tmp_path / "theirs")
    network, params = UNet.from_pretrained(tmp_path / "theirs")
    rng = np.random.default_rng(0)
    x, label = np.float32(rng.normal(size=(2, 4, 4, 8))), np.float32(rng.normal(size=(2, 16)))
    ours = network.apply({"params": params}, x, np.float32(7), class_labels=label)
    given = theirs(
        torch.tensor(x).permute(0, 3, 1, 2), 7, None, class_labels=torch.tensor(label)
    ).sample
    near(ours, given.permute(0, 2, 3, 1))
    network.save_pretrained(params, tmp_path / "ours")
    again = diffusers.UNet2DConditionModel.from_pretrained(tmp_path / "ours")
    for key, tensor in theirs.state_dict().items():
        assert torch.equal(again.state_dict()[key], tensor), key
    with pytest.raises(SdjaxError, match="takes no context"):
        network.apply({"params": params}, x, 7.0, np.zeros((2, 1, 8)), class_labels=label)
