"""`python main.py convert` and the files behind it: what must not be lost, and what is refused."""

import json
import shutil
import warnings

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

import main
import sdjax
from sdjax.pipeline.model import files
from sdjax.weights.tensors import dtype_of, read_safetensors
from tests.weights.small import random_pipeline


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    folder = tmp_path_factory.mktemp("whole")
    random_pipeline().save_pretrained(folder)
    return folder


def test_several_parts_have_a_folder_each(whole, tmp_path):
    model = random_pipeline()
    model.save_single_file(tmp_path / "a.safetensors")
    state = load_file(tmp_path / "a.safetensors")
    save_file({key: v for key, v in state.items() if not key.startswith("cond_stage_model.")},
              tmp_path / "two.safetensors", {"format": "pt"})  # fmt: skip
    out = tmp_path / "out"
    arguments = ["convert", str(tmp_path / "two.safetensors"), str(out), "--config", str(whole)]
    assert main.main(arguments) == 0
    for part in ("unet", "vae"):
        found = load_file(out / part / "diffusion_pytorch_model.safetensors")
        expected = load_file(whole / part / "diffusion_pytorch_model.safetensors")
        assert found.keys() == expected.keys()


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_single_file_in_every_dtype(dtype, whole, tmp_path):
    path = tmp_path / "a.safetensors"
    assert main.main(["convert", str(whole), str(path), "--dtype", dtype]) == 0
    state, metadata = read_safetensors(path)
    assert metadata["format"] == "pt" and metadata["modelspec.title"] == "a"
    assert {tensor.dtype for tensor in state.values()} == {dtype_of(dtype)}
    vae = load_file(whole / "vae" / "diffusion_pytorch_model.safetensors")
    found = state["first_stage_model.encoder.conv_in.weight"].load()
    np.testing.assert_array_equal(found, vae["encoder.conv_in.weight"].astype(dtype_of(dtype)))


@pytest.mark.parametrize("dtype", [None, "float32", "bfloat16"])
def test_weights_that_are_no_numbers_are_refused(dtype, whole, tmp_path, capsys):
    folder = tmp_path / "damaged"
    shutil.copytree(whole, folder)
    path = folder / "unet" / "diffusion_pytorch_model.safetensors"
    state = load_file(path)
    state["conv_in.weight"][1, 2, 0, 1] = np.nan
    save_file(state, path)
    options = ["--dtype", dtype] if dtype else []
    for out in ("out", "out.safetensors"):
        assert main.main(["convert", str(folder), str(tmp_path / out), *options]) == 2
        assert "holds values that are not finite" in capsys.readouterr().err
    assert not (tmp_path / "out.safetensors").exists()
    with pytest.raises(sdjax.SdjaxError, match="conv_in.weight holds values that are not finite"):
        sdjax.StableDiffusion.from_pretrained(folder, dtype=dtype or "float16")


def test_revision_of_a_hub_id(whole, tmp_path, monkeypatch):
    asked = []
    monkeypatch.setattr(files, "locate", lambda *arguments: asked.append(arguments) or whole)
    out = tmp_path / "a.safetensors"
    assert main.main(["convert", "someone/model", str(out), "--revision", "v2"]) == 0
    assert asked == [("someone/model", None, "v2")]


@pytest.mark.parametrize(
    ("file", "change", "message"),
    [
        ("model_index.json", {"unet": 3}, r"unet must be \[library, class\], got 3"),
        ("model_index.json", {"vae": ["diffusers", None]}, r"vae must be \[library, class\]"),
        ("scheduler/scheduler_config.json", {"prediction_type": 1}, "prediction_type cannot be 1"),
        ("unet/config.json", {"in_channels": "four"}, "in_channels cannot be 'four'"),
        ("text_encoder/config.json", {"hidden_act": []}, r"hidden_act cannot be \[\]"),
    ],
)
def test_values_of_the_wrong_type_are_one_line(file, change, message, whole, tmp_path):
    folder = tmp_path / "wrong"
    shutil.copytree(whole, folder)
    config = json.loads((folder / file).read_text())
    (folder / file).write_text(json.dumps(config | change))
    with pytest.raises(sdjax.SdjaxError, match=message) as caught:
        files.write_model(files.read_model(folder), tmp_path / "out")
    assert "\n" not in str(caught.value)


def test_options_of_single_files_are_no_use_with_a_folder(whole, tmp_path):
    for options in ({"config": whole}, {"prediction_type": "epsilon"}):
        with pytest.raises(sdjax.SdjaxError, match="are for single files"):
            files.read_model(whole, **options)


def test_a_configuration_of_compvis_beside_a_file_is_told(whole, tmp_path):
    random_pipeline().save_single_file(tmp_path / "a.safetensors")
    (tmp_path / "a.yaml").write_text('model:\n  params:\n    parameterization: "v"\n')
    with pytest.warns(UserWarning, match=r"a.yaml is not read: .* prediction_type=") as caught:
        files.read_model(tmp_path / "a.safetensors")
    assert len(caught) == 1
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        files.read_model(tmp_path / "a.safetensors", config=whole)
