"""Learned words of each format against diffusers."""

import numpy as np
import pytest
import torch
import transformers
from safetensors.torch import save_file

import sdjax
from tests.pipeline import peers

WORD = "<cat-toy>"
PROMPT = f"a {WORD} red circle"


@pytest.fixture(scope="module")
def sdxl(tmp_path_factory):
    return peers.make("sdxl", tmp_path_factory.mktemp("sdxl"))


@pytest.fixture
def model(folder):
    return sdjax.StableDiffusion.from_pretrained(folder)


def vectors(count, width=24):
    return torch.randn(count, width, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("count", [1, 3])
@pytest.mark.parametrize("style", ["diffusers", "a1111", "module", "safetensors"])
def test_picture_equals_diffusers(folder, model, style, count, tmp_path):
    value = vectors(count)
    if style == "safetensors":
        path = tmp_path / "word.safetensors"
        save_file({WORD: value}, path)
    elif style in ("a1111", "module"):
        path = tmp_path / "word.pt"
        learned = {"*": value}
        if style == "module":  # as A1111 itself and the method's first authors write it
            learned = torch.nn.ParameterDict(learned)
        content = {"string_to_token": {"*": 265}, "string_to_param": learned, "name": WORD}
        torch.save(content, path, _use_new_zipfile_serialization=count == 1)
    else:
        path = tmp_path / "word.bin"
        torch.save({WORD: value[0] if count == 1 else value}, path)
    assert model.load_textual_inversion(path) == WORD
    pipeline = peers.load("sd1", folder)
    pipeline.load_textual_inversion({WORD: value[0] if count == 1 else value}, token=WORD)
    text = pipeline.maybe_convert_prompt(PROMPT, pipeline.tokenizer)
    ids = pipeline.tokenizer(text, padding="max_length", max_length=peers.LENGTH)["input_ids"]
    np.testing.assert_array_equal(model.tokenizers[0].encode(PROMPT)[0], ids)
    with torch.no_grad():
        theirs = pipeline.text_encoder(torch.tensor([ids]))[0].numpy()
    encoder = model.text_encoders[0]
    ours = encoder.apply({"params": model.params["text_encoder"]}, np.array([ids], np.int32))
    np.testing.assert_allclose(ours.last_hidden_state, theirs, atol=2e-5)


def test_saved_model_keeps_the_word(model, tmp_path):
    save_file({WORD: vectors(2)}, tmp_path / "word.safetensors")
    model.load_textual_inversion(tmp_path / "word.safetensors")
    model.save_pretrained(tmp_path / "model")
    again = sdjax.StableDiffusion.from_pretrained(tmp_path / "model")
    ids = model.tokenizers[0].encode(PROMPT)
    np.testing.assert_array_equal(again.tokenizers[0].encode(PROMPT), ids)
    theirs = transformers.CLIPTokenizer.from_pretrained(tmp_path / "model" / "tokenizer")
    assert theirs(f"{WORD} {WORD}_1")["input_ids"][1:-1] == ids[0, 2:4].tolist()


@pytest.mark.parametrize("first", [0, 1])
def test_both_encoders_of_sdxl(sdxl, first, tmp_path):
    """Of two words that begin alike, loaded in either order, a prompt has the longer one."""
    model, pipeline = sdjax.StableDiffusion.from_pretrained(sdxl), peers.load("sdxl", sdxl)
    words = [("<cat", 2), (WORD, 3)]
    for word, count in words[first:] + words[:first]:
        path = tmp_path / f"{count}.safetensors"
        save_file({"clip_l": vectors(count), "clip_g": vectors(count, 32)}, path)
        assert model.load_textual_inversion(path, token=word) == word
        for name, width in (("", 24), ("_2", 32)):
            parts = {part: getattr(pipeline, part + name) for part in ("text_encoder", "tokenizer")}
            pipeline.load_textual_inversion(vectors(count, width), token=word, **parts)
    sizes = [encoder.config.vocab_size for encoder in model.text_encoders]
    assert sizes == [len(tokenizer) for tokenizer in model.tokenizers]
    noise = np.random.RandomState(0).randn(1, 8, 8, 4).astype(np.float32)
    noised = peers.torch_latents(noise)
    options = {"latents": noised, "num_inference_steps": 2, "negative_prompt": WORD}
    theirs = peers.images(pipeline, PROMPT, **options)
    options = {"latents": noise, "steps": 2, "negative_prompt": WORD, "output": "numpy"}
    ours = model.generate(PROMPT, guidance_scale=5, **options)
    peers.assert_close(ours, theirs)


def test_a_word_of_one_encoder_alone_is_told(sdxl, tmp_path):
    """diffusers loads it into the encoder that it fits too, and the other reads letters."""
    model, pipeline = sdjax.StableDiffusion.from_pretrained(sdxl), peers.load("sdxl", sdxl)
    save_file({WORD: vectors(1)}, tmp_path / "word.safetensors")
    with pytest.warns(UserWarning, match="no vectors for text_encoder_2, which reads") as caught:
        model.load_textual_inversion(tmp_path / "word.safetensors")
    assert caught[0].filename == __file__
    pipeline.load_textual_inversion(tmp_path / "word.safetensors")
    for ours, theirs in zip(model.tokenizers, (pipeline.tokenizer, pipeline.tokenizer_2)):
        ids = theirs(f"a {WORD}", padding="max_length", max_length=peers.LENGTH)["input_ids"]
        np.testing.assert_array_equal(ours.encode(f"a {WORD}")[0], ids)


def test_vectors_of_another_model_are_refused(model, tmp_path):
    save_file({WORD: vectors(1, 99)}, tmp_path / "a.safetensors")
    with pytest.raises(sdjax.SdjaxError, match="of another model"):
        model.load_textual_inversion(tmp_path / "a.safetensors")
    save_file({"a": vectors(1), "b": vectors(1)}, tmp_path / "b.safetensors")
    with pytest.raises(sdjax.SdjaxError, match="not a textual inversion"):
        model.load_textual_inversion(tmp_path / "b.safetensors")
    save_file({WORD: vectors(0)}, tmp_path / "empty.safetensors")
    with pytest.raises(sdjax.SdjaxError, match=r"have shape \(0, 24\)"):
        model.load_textual_inversion(tmp_path / "empty.safetensors")
    save_file({WORD: vectors(1) * np.nan}, tmp_path / "damaged.safetensors")
    with pytest.raises(sdjax.SdjaxError, match="vectors that are not finite"):
        model.load_textual_inversion(tmp_path / "damaged.safetensors")
    save_file({"red</w>": vectors(1)}, tmp_path / "c.safetensors")
    with pytest.raises(sdjax.SdjaxError, match="known already"):
        model.load_textual_inversion(tmp_path / "c.safetensors", token="!")
