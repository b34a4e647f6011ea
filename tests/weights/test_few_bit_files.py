"""Files in few bits of other programs against those programs, to the last bit, and ours read back."""

import importlib.util
import json

import ml_dtypes
import numpy as np
import pytest

import sdjax
from sdjax.cli.convert import convert
from sdjax.errors import SdjaxError
from sdjax.models.quantized import narrow_leaves
from sdjax.pipeline.model.files import read_model
from sdjax.weights.names import state_from_params
from sdjax.weights.original import original_unet
from sdjax.weights.quantized import bits_and_bytes, gguf_files, scaled_fp8
from sdjax.weights.quantized.rounding import quantized_shapes
from sdjax.weights.single_file import read_file
from sdjax.weights.tensors import lazy, write_safetensors
from tests.weights.small import random_pipeline

RANDOM = np.random.default_rng(0)
needs_gguf = pytest.mark.skipif(not importlib.util.find_spec("gguf"), reason="no gguf")
needs_bitsandbytes = pytest.mark.skipif(
    not importlib.util.find_spec("bitsandbytes"), reason="no bitsandbytes"
)


def drawn(*shape):
    return RANDOM.standard_normal(shape, np.float32)


@pytest.fixture(scope="module")
def model():
    return random_pipeline()


@pytest.fixture(scope="module")
def folder(model, tmp_path_factory):
    place = tmp_path_factory.mktemp("wide") / "model"
    model.save_pretrained(place)
    return place


def unet_state(model):
    return {key: tensor.load() for key, tensor in state_from_params(model.params["unet"]).items()}


def original_weights(model):
    """The U-Net's under the names of a single file."""
    state = original_unet(state_from_params(model.params["unet"]), 1)
    return {f"model.diffusion_model.{key}": tensor.load() for key, tensor in state.items()}


@needs_bitsandbytes
@pytest.mark.parametrize("kind", ["nf4", "fp4"])
@pytest.mark.parametrize("nested", [False, True])
@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_four_bits_are_those_of_bitsandbytes(kind, nested, dtype, tmp_path):
    import torch
    from bitsandbytes import functional
    from safetensors.torch import save_file

    weight = torch.tensor(drawn(96, 250)).to(getattr(torch, dtype))
    codes, state = functional.quantize_4bit(
        weight, blocksize=64, quant_type=kind, compress_statistics=nested
    )
    tensors = {f"a.weight.{key}": value for key, value in state.as_dict(packed=True).items()}
    save_file({"a.weight": codes, **tensors}, tmp_path / "a.safetensors")
    found = read_file(tmp_path / "a.safetensors")[0]
    assert set(found) == {"a.weight"} and found["a.weight"].shape == (96, 250)
    expected = functional.dequantize_4bit(codes, state)
    loaded = found["a.weight"].load()
    assert loaded.dtype.name == dtype
    np.testing.assert_array_equal(loaded.astype(np.float32), expected.float().numpy())


@needs_bitsandbytes
def test_eight_bits_are_those_of_bitsandbytes(tmp_path):
    import torch
    from bitsandbytes import functional

    codes, scales, _ = functional.int8_vectorwise_quant(torch.tensor(drawn(40, 64)).half())
    state = {
        "a.weight": lazy(codes.numpy()), "a.SCB": lazy(scales.numpy()),
        "a.weight_format": lazy(np.array(0, np.uint8)),
    }  # fmt: skip
    write_safetensors(tmp_path / "a.safetensors", state)
    found = read_file(tmp_path / "a.safetensors")[0]
    expected = functional.int8_vectorwise_dequant(codes, scales).numpy()
    np.testing.assert_array_equal(found["a.weight"].load(), expected)
    state["a.weight_format"] = lazy(np.array(2, np.uint8))
    write_safetensors(tmp_path / "b.safetensors", state)
    with pytest.raises(SdjaxError, match="laid out for one kind of GPU"):
        read_file(tmp_path / "b.safetensors")


@needs_bitsandbytes
def test_bitsandbytes_reads_what_is_written(model, folder, tmp_path):
    """A folder for diffusers; the codes are those that the library makes itself."""
    import torch
    from bitsandbytes import functional
    from safetensors.torch import load_file

    convert(str(folder), tmp_path / "out", quantize="bnb-nf4")
    config = json.loads((tmp_path / "out/unet/config.json").read_text())
    assert config["quantization_config"]["quant_method"] == "bitsandbytes"
    tensors = load_file(tmp_path / "out/unet/diffusion_pytorch_model.safetensors")
    read, wide, narrow = read_model(tmp_path / "out").checkpoint.parts["unet"].state, unet_state(model), 0
    for key, weight in wide.items():
        states = [name for name in tensors if name.startswith(f"{key}.quant_state.")]
        if states:
            narrow += 1
            given = {name.removeprefix(f"{key}."): value for name, value in tensors.items()
                     if name.startswith(f"{key}.")}
            state = functional.QuantState.from_dict(given, device=torch.device("cpu"))
            codes, own = functional.quantize_4bit(torch.tensor(weight), blocksize=64, quant_type="nf4")
            np.testing.assert_array_equal(tensors[key], codes)
            np.testing.assert_array_equal(state.absmax, own.absmax)
            weight = functional.dequantize_4bit(tensors[key], state).float().numpy()
        np.testing.assert_array_equal(read[key].load().astype(np.float32), weight)
    assert narrow > 20
    sdjax.StableDiffusion.from_pretrained(tmp_path / "out")


@pytest.mark.parametrize("name", ["scale_weight", "weight_scale"])
@pytest.mark.parametrize("kind", ["float8_e4m3fn", "float8_e5m2"])
def test_scaled_fp8_is_multiplied_out(name, kind, tmp_path):
    """PyTorch's own product of the same numbers."""
    import torch

    weight, scale = torch.tensor(drawn(24, 40)).to(getattr(torch, kind)), torch.tensor([0.37])
    rows = torch.tensor(drawn(24)).abs()
    as_bytes = weight.view(torch.uint8).numpy().view(getattr(ml_dtypes, kind))
    said = np.frombuffer(json.dumps({"format": kind}).encode(), np.uint8)
    state = {
        "a.weight": lazy(as_bytes), f"a.{name}": lazy(scale.numpy()),
        "a.scale_input": lazy(np.ones(1, np.float32)), "b.weight": lazy(as_bytes),
        f"b.{name}": lazy(rows.numpy()[:, None]), "a.comfy_quant": lazy(said),
        "c.input_scale": lazy(np.float32(2)), "c.weight": lazy(drawn(2, 2)),
        "scaled_fp8": lazy(np.zeros(2, ml_dtypes.float8_e4m3fn)),
    }  # fmt: skip
    write_safetensors(tmp_path / "a.safetensors", state)
    found = read_file(tmp_path / "a.safetensors")[0]
    assert set(found) == {"a.weight", "b.weight", "c.weight"}
    np.testing.assert_array_equal(found["a.weight"].load(), (weight.float() * scale).numpy())
    np.testing.assert_array_equal(found["b.weight"].load(), (weight.float() * rows[:, None]).numpy())


@pytest.mark.parametrize(
    ("said", "scale", "message"),
    [
        ({"format": "nvfp4"}, np.ones(1), "says 'nvfp4': of ComfyUI's formats"),
        ({"format": "float8_e4m3fn"}, np.ones(5), "expected one number, or one for each of the 3"),
        ({"format": "float8_e4m3fn"}, np.ones((3, 2)), "expected one number"),
        ([1], np.ones(1), "is not understood"),
    ],
)
def test_scales_that_are_not_understood(said, scale, message):
    state = {
        "a.weight": lazy(np.zeros((3, 4), ml_dtypes.float8_e4m3fn)),
        "a.weight_scale": lazy(scale.astype(np.float32)),
        "a.comfy_quant": lazy(np.frombuffer(json.dumps(said).encode(), np.uint8)),
    }
    with pytest.raises(SdjaxError, match=message):
        scaled_fp8.wide(state)


@pytest.mark.parametrize("lost", ["absmax", "quant_map"])
def test_four_bits_that_are_not_whole(lost):
    state = bits_and_bytes.narrowed({"a.weight": lazy(drawn(8, 32))})
    del state[f"a.weight.{lost}"]
    with pytest.raises(SdjaxError, match=f"is not whole: 'a.weight.{lost}' is missing"):
        bits_and_bytes.wide(state)
    state = bits_and_bytes.narrowed({"a.weight": lazy(drawn(8, 32))})
    state["a.weight.absmax"] = lazy(np.ones(3, np.float32))
    with pytest.raises(SdjaxError, match="has .* numbers of uint8, expected"):
        bits_and_bytes.wide(state)


def test_scaled_fp8_is_written_for_single_files(model, folder, tmp_path):
    convert(str(folder), tmp_path / "a.safetensors", dtype="float16", quantize="fp8")
    from safetensors import safe_open

    with safe_open(tmp_path / "a.safetensors", "np") as file:
        scaled = [key for key in file.keys() if key.endswith(".scale_weight")]  # noqa: SIM118
        assert "model.diffusion_model.scaled_fp8" in file.keys()  # noqa: SIM118
    assert len(scaled) > 20
    read = read_file(tmp_path / "a.safetensors")[0]
    for key, weight in original_weights(model).items():
        error = np.abs(read[key].load().astype(np.float32) - weight).max()
        assert error <= np.abs(weight).max() / 16


@needs_gguf
@pytest.mark.parametrize("kind", gguf_files.READ)
def test_gguf_is_what_its_package_makes_of_it(kind, tmp_path):
    import gguf

    own = gguf.GGMLQuantizationType[kind]
    block, size = gguf.GGML_QUANT_SIZES[own]
    try:
        data = gguf.quants.quantize(drawn(6, 512), own)
    except NotImplementedError:  # the package only reads it: any bits, with finite scales
        data = RANDOM.integers(0, 60, (6, 512 // block * size), dtype=np.uint8)
    path = tmp_path / "a.gguf"
    writer = gguf.GGUFWriter(path, "sd1")
    writer.add_tensor("input_blocks.1.1.proj_in.weight", data, raw_dtype=own)
    writer.add_array("comfy.gguf.orig_shape.input_blocks.1.1.proj_in.weight", [24, 32, 2, 2])
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    found = read_file(path)[0]["input_blocks.1.1.proj_in.weight"]
    assert found.shape == (24, 32, 2, 2)
    expected = gguf.quants.dequantize(data, own).reshape(24, 32, 2, 2)
    assert np.isfinite(expected).all() and np.abs(expected).max() > 0
    np.testing.assert_array_equal(found.load(), expected)


@needs_gguf
@pytest.mark.parametrize("kind", gguf_files.WRITTEN)
def test_gguf_files_are_written_and_read(kind, model, folder, tmp_path):
    import gguf

    convert(str(folder), tmp_path / "a.gguf", quantize=kind)
    reader = gguf.GGUFReader(tmp_path / "a.gguf")
    types = {tensor.name: tensor.tensor_type.name for tensor in reader.tensors}
    read, narrow = read_file(tmp_path / "a.gguf")[0], 0
    for name, weight in original_weights(model).items():
        assert read[name].shape == weight.shape
        narrow += types[name] == kind.upper()
        step = {"F32": 0, "F16": 2**-11, "Q8_0": 1 / 254, "Q4_0": 1 / 8}[types[name]]
        step += 2**-11 * (types[name] != "F32")  # of the scale, a half
        assert np.abs(read[name].load() - weight).max() <= step * np.abs(weight).max()
    assert narrow >= 8  # rows of 32 only
    loaded = sdjax.StableDiffusion.from_single_file(
        tmp_path / "a.gguf", config=folder, quantize="int8"
    )
    assert narrow_leaves(loaded.params)


@needs_gguf
def test_gguf_of_other_types_is_refused(tmp_path):
    import gguf

    writer = gguf.GGUFWriter(tmp_path / "a.gguf", "sd1")
    writer.add_tensor("a", np.zeros(4, np.int32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    with pytest.raises(SdjaxError, match="a is of type I32, which is not read; read are F32"):
        read_file(tmp_path / "a.gguf")


def test_text_encoders_of_stable_diffusion_cpp_get_their_names_back():
    """Of SDXL: CLIP-L under transformers' names, OpenCLIP with its fused projections renamed."""
    one = lazy(np.zeros((2, 2), np.float32))
    theirs = "transformer.text_model."
    state = dict.fromkeys([
        f"cond_stage_model.{theirs}encoder.layers.0.self_attn.q_proj.weight",
        f"cond_stage_model.1.{theirs}encoder.layers.3.self_attn.in_proj.weight",
        f"cond_stage_model.1.{theirs}encoder.layers.3.self_attn.out_proj.bias",
        f"cond_stage_model.1.{theirs}encoder.layers.3.layer_norm2.weight",
        f"cond_stage_model.1.{theirs}encoder.layers.3.mlp.fc1.bias",
        f"cond_stage_model.1.{theirs}embeddings.position_embedding.weight",
        f"cond_stage_model.1.{theirs}text_projection", "first_stage_model.a",
    ], one)  # fmt: skip
    second = "conditioner.embedders.1.model."
    assert list(gguf_files.renamed(state)) == [
        "conditioner.embedders.0.transformer.text_model.encoder.layers.0.self_attn.q_proj.weight",
        f"{second}transformer.resblocks.3.attn.in_proj_weight",
        f"{second}transformer.resblocks.3.attn.out_proj.bias",
        f"{second}transformer.resblocks.3.ln_2.weight",
        f"{second}transformer.resblocks.3.mlp.c_fc.bias",
        f"{second}positional_embedding", f"{second}text_projection", "first_stage_model.a",
    ]  # fmt: skip
    first = {f"cond_stage_model.{theirs}encoder.layers.0.self_attn.in_proj.weight": one}
    assert list(gguf_files.renamed(first)) == [
        "cond_stage_model.model.transformer.resblocks.0.attn.in_proj_weight"
    ]


@pytest.mark.parametrize("kind", ["int8", "nf4"])
def test_folders_of_few_bits_are_converted(kind, model, folder, tmp_path):
    import jax

    convert(str(folder), tmp_path / "narrow", quantize=kind)
    read = sdjax.StableDiffusion.from_pretrained(tmp_path / "narrow")
    expected = model.quantized(kind).params
    jax.tree.map(np.testing.assert_array_equal, read.params, expected)
    shapes = quantized_shapes(jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype),
                                           model.params), kind)
    assert jax.tree.map(lambda x: (x.shape, x.dtype), expected) == jax.tree.map(
        lambda x: (x.shape, x.dtype), shapes
    )
    convert(str(tmp_path / "narrow"), tmp_path / "wide", dtype="float32")
    again = sdjax.StableDiffusion.from_pretrained(tmp_path / "wide")
    assert jax.tree.structure(again.params) == jax.tree.structure(model.params)


@pytest.mark.parametrize(
    ("out", "kind", "message"),
    [
        ("a.gguf", "nf4", "a .gguf file holds weights of q8_0, q4_0, got nf4"),
        ("a.safetensors", "int8", "a .safetensors file holds weights of fp8, got int8"),
        ("a", "q8_0", "a folder holds weights of int8, fp8, int4, nf4, bnb-nf4, got q8_0"),
    ],
)
def test_what_a_name_cannot_hold_is_refused(out, kind, message, folder, tmp_path):
    with pytest.raises(SdjaxError, match=message):
        convert(str(folder), tmp_path / out, quantize=kind)
    assert not list(tmp_path.iterdir())


def test_other_quantisations_are_told(folder, tmp_path):
    import shutil

    place = shutil.copytree(folder, tmp_path / "model")
    config = json.loads((place / "unet/config.json").read_text())
    config["quantization_config"] = {"quant_method": "torchao"}
    (place / "unet/config.json").write_text(json.dumps(config))
    with pytest.raises(SdjaxError, match="weights quantised by 'torchao' are not read"):
        read_model(place)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda notes: "{", "is not understood"),
        (lambda notes: json.dumps({**notes, "a": {"kind": "int8"}}), "is not understood"),
        (lambda notes: json.dumps({key: {**note, "kind": "int5"} for key, note in notes.items()}),
         "the kind 'int5'"),
        (lambda notes: json.dumps({key: {**note, "shape": [4, 4]} for key, note in notes.items()}),
         "expected"),
    ],
)  # fmt: skip
def test_damaged_notes_are_one_line(change, message, model, tmp_path):
    unet = model.quantized("nf4")
    unet.unet.save_pretrained(unet.params["unet"], tmp_path)
    path = tmp_path / "diffusion_pytorch_model.safetensors"
    raw = path.read_bytes()
    length = int.from_bytes(raw[:8], "little")
    header = json.loads(raw[8 : 8 + length])
    notes = header["__metadata__"]
    notes["sdjax.quantized"] = change(json.loads(notes["sdjax.quantized"]))
    text = json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + raw[8 + length :])
    with pytest.raises(SdjaxError, match=message) as caught:
        sdjax.UNet.from_pretrained(tmp_path)
    assert "\n" not in str(caught.value)
