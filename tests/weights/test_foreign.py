"""Files that are no weights, or weights in a form that is not read: one line that says which."""

import numpy as np
import pytest

import sdjax
from sdjax.weights.single_file import read_file, read_single_file
from sdjax.weights.tensors import lazy, read_safetensors, write_safetensors

POINTER = (
    b"version https://git-lfs.github.com/spec/v1\n"
    b"oid sha256:4d7a214614ab2935c943f9e0ff69d22eadbb8f32b1258daaa5e2ca24d17e2393\nsize 12345\n"
)
ONE = lazy(np.ones(1, np.float32))


@pytest.mark.parametrize("name", ["a.safetensors", "a.ckpt", "a.bin"])
@pytest.mark.parametrize(
    ("content", "message"),
    [
        (POINTER, "is a git-lfs pointer, not the weights themselves: run `git lfs pull`"),
        (b"<!DOCTYPE html>\n<html><head>", "is a web page, not weights"),
        (b"\n <HTML lang=en>" + b" " * 99, "is a web page, not weights"),
        (b'{"error": "Unauthorized"}', "is a text file of JSON"),
        (b"GGUF\x03\0\0\0" + b"\0" * 99, "is a GGUF file"),
    ],
)
def test_files_that_are_no_weights(content, message, name, tmp_path):
    path = tmp_path / name
    path.write_bytes(content)
    for read in (read_file, read_single_file, sdjax.UNet.from_pretrained):
        with pytest.raises(sdjax.SdjaxError, match=message) as caught:
            read(path)
        assert "\n" not in str(caught.value) and str(path) in str(caught.value)
    if name == "a.safetensors":
        with pytest.raises(sdjax.SdjaxError, match=message):
            read_safetensors(path)


def test_pointers_in_a_folder(tmp_path):
    (tmp_path / "config.json").write_text('{"_class_name": "UNet2DConditionModel"}')
    (tmp_path / "diffusion_pytorch_model.safetensors").write_bytes(POINTER)
    with pytest.raises(sdjax.SdjaxError, match="is a git-lfs pointer"):
        sdjax.UNet.from_pretrained(tmp_path)


def test_a_header_that_begins_like_json_is_one(tmp_path):
    """The length of a header may be that of the letters of any text."""
    length = int.from_bytes(b'{"\0\0\0\0\0\0', "little")
    entry = b'{"a":{"dtype":"U8","shape":[1],"data_offsets":[0,1]}}'
    raw = b'{"\0\0\0\0\0\0' + entry + b" " * (length - len(entry)) + b"\7"
    (tmp_path / "a.safetensors").write_bytes(raw)
    assert read_file(tmp_path / "a.safetensors")[0]["a"].load() == 7


@pytest.mark.parametrize(
    ("key", "message"),
    [
        ("model.diffusion_model.input_blocks.1.0.in_layers.2.scale_weight", "which is missing"),
        ("model.diffusion_model.out.2.weight_scale", "which is of float32: expected float8_e4m3fn"),
        ("model.diffusion_model.out.2.comfy_quant", "is not understood"),
        ("model.diffusion_model.out.2.weight.quant_state.bitsandbytes__nf4", "is not understood"),
        ("model.diffusion_model.out.2.weight.absmax", "4 bits by bitsandbytes that are not whole"),
        ("model.diffusion_model.out.2.SCB", "is not int8 with a number"),
        ("text_model.encoder.layers.0.mlp.fc1.qweight", "GPTQ or AWQ"),
    ],
)
def test_quantised_weights_are_told_by_their_kind(key, message, tmp_path):
    write_safetensors(tmp_path / "a.safetensors", {"model.diffusion_model.out.2.weight": ONE, key: ONE})
    with pytest.raises(sdjax.SdjaxError, match=message) as caught:
        read_single_file(tmp_path / "a.safetensors")
    assert key.removesuffix(".SCB") in str(caught.value) and "\n" not in str(caught.value)
