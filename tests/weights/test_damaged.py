"""Files that are not what they seem: one clear line, nothing run, nothing hung."""

import argparse
import collections
import json
import os
import pickle
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch

import sdjax
from sdjax.weights.hub import locate
from sdjax.weights.pickles import read_pickle
from sdjax.weights.single_file import read_file, read_single_file
from sdjax.weights.tensors import lazy, read_safetensors, write_safetensors

TENSORS = {
    "first_stage_model.encoder.conv_in.weight": np.ones((4, 3, 3, 3), np.float32),
    "model.diffusion_model.input_blocks.0.0.bias": np.arange(4, dtype=np.float16),
    "counts": np.arange(3),
}
ROOT = str(Path(sdjax.__file__).parents[1])


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """The same tensors as safetensors and as both of PyTorch's pickled formats."""
    folder = tmp_path_factory.mktemp("files")
    write_safetensors(folder / "a.safetensors", {k: lazy(v) for k, v in TENSORS.items()})
    tensors = {key: torch.from_numpy(value) for key, value in TENSORS.items()}
    torch.save({"state_dict": tensors}, folder / "a.ckpt")
    torch.save({"state_dict": tensors}, folder / "a.pt", _use_new_zipfile_serialization=False)
    return folder


def refused(message, function, *arguments):
    with pytest.raises(sdjax.SdjaxError, match=message) as caught:
        function(*arguments)
    assert "\n" not in str(caught.value)


class Malicious:
    """Unpickled the usual way, this makes a file."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.system, (f"touch {self.path}",)


@pytest.mark.parametrize("name", ["a.safetensors", "a.ckpt", "a.pt"])
def test_all_formats_hold_the_same(files, name):
    state, _ = read_file(files / name)
    for key, value in TENSORS.items():
        np.testing.assert_array_equal(state[key].load(), value)
        assert state[key].dtype == value.dtype


def test_views_and_parameters_of_a_pickle(tmp_path):
    base = torch.arange(12.0).reshape(3, 4)
    content = {"a": base, "view": base[1:].T, "p": torch.nn.Parameter(base.bfloat16())}
    torch.save(content, tmp_path / "a.bin")
    found = read_pickle(tmp_path / "a.bin")
    for key, value in content.items():
        np.testing.assert_array_equal(
            found[key].load().astype(np.float32), value.detach().float().numpy()
        )


class ModelCheckpoint:
    """Of Lightning, the class itself a key in the files of Stable Diffusion 1."""

    __module__ = "pytorch_lightning.callbacks.model_checkpoint"


class Tagged(torch.Tensor):
    """Pickled by `_rebuild_from_type_v2`."""


@pytest.mark.parametrize("zipped", [True, False])
def test_what_a_training_state_holds_beside_the_weights(tmp_path, zipped, monkeypatch):
    """Of the published Stable Diffusion 1 files and of others that Lightning wrote."""
    module = ModelCheckpoint.__module__.split(".")
    for i in range(len(module)):  # as if it were installed
        there = argparse.Namespace(ModelCheckpoint=ModelCheckpoint)
        monkeypatch.setitem(sys.modules, ".".join(module[: i + 1]), there)
    weight = torch.nn.Parameter(torch.arange(6.0).reshape(2, 3))
    weight.origin = "here"  # pickled by `_rebuild_parameter_with_state`
    content = {
        "epoch": 3,
        "global_step": 470000,
        "pytorch-lightning_version": "1.4.2",
        "callbacks": {ModelCheckpoint: {"best_model_score": np.float64(1.5), "dirpath": tmp_path}},
        "lr_schedulers": [{"base_lrs": [1e-4], "_last_lr": np.arange(2.0)}],
        "optimizer_states": [collections.defaultdict(list, state={0: {"step": 1}})],
        "hyper_parameters": argparse.Namespace(lr=1e-4),
        "state_dict": collections.OrderedDict(a=weight, b=torch.ones(2).as_subclass(Tagged)),
    }
    path = tmp_path / "a.ckpt"
    torch.save(content, path, _use_new_zipfile_serialization=zipped)
    state, metadata = read_file(path)
    assert metadata == {"global_step": "470000"} and set(state) == {"a", "b"}
    np.testing.assert_array_equal(state["a"].load(), np.arange(6.0).reshape(2, 3))
    np.testing.assert_array_equal(state["b"].load(), np.ones(2))


def test_every_dtype_of_a_pickle_is_read_or_named(tmp_path):
    path = tmp_path / "a.ckpt"
    names = "float8_e4m3fn float8_e5m2 uint16 uint32 uint64 bfloat16 float16 int8 bool".split()
    numbers = torch.tensor([0, 1, 2, 1, 0, 2])
    tensors = {name: numbers.to(getattr(torch, name)).reshape(2, 3)[:, 1:] for name in names}
    torch.save(tensors, path)
    for name, tensor in read_pickle(path).items():
        assert tensor.dtype.name == name and tensor.shape == (2, 2)
        expected = tensors[name].to(torch.float32).numpy()
        np.testing.assert_array_equal(tensor.load().astype(np.float32), expected)
    others = {
        "ComplexFloat": torch.ones(2, dtype=torch.complex64),
        "float8_e5m2fnuz": torch.ones(2).to(torch.float8_e5m2fnuz),
        "sparse_tensor": torch.eye(2).to_sparse(),
    }
    for name, tensor in others.items():
        torch.save({"weight": tensor}, path)
        with pytest.raises(sdjax.SdjaxError, match=f"a.ckpt holds .*{name}") as caught:
            read_pickle(path)
        assert "not read" in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize("protocol", [2, 4, 5])
def test_malicious_pickle_names_the_refused_global(tmp_path, protocol):
    trap = tmp_path / "trap"
    for name, save in (("zip.ckpt", torch.save), ("raw.ckpt", None)):
        path = tmp_path / name
        if save:
            save({"state_dict": Malicious(trap)}, path)
        else:
            path.write_bytes(pickle.dumps({"state_dict": Malicious(trap)}, protocol))
        refused("would call posix.system", read_single_file, path)
    assert not trap.exists()


# Programs of other shapes than `__reduce__` makes, all of which call something unless refused.
PROGRAMS = {
    "text protocol": (b"cposix\nsystem\n(S'touch trap'\ntR.", "would call posix.system"),
    "instance": (b"(S'touch trap'\niposix\nsystem\n.", "the pickle instruction INST"),
    "object": (b"\x80\x02(cposix\nsystem\nX\x0a\0\0\0touch trapo.", "the pickle instruction OBJ"),
    "new object": (b"\x80\x02cposix\nsystem\nX\x0a\0\0\0touch trap\x85\x81.",
                   "would call posix.system"),
    "keywords": (b"\x80\x04cposix\nsystem\nX\x0a\0\0\0touch trap\x85}\x92.",
                 "the pickle instruction NEWOBJ_EX"),
    "extension": (b"\x80\x02\x82\x01.", "the pickle instruction EXT1"),
    "global off the stack": (b"\x80\x04\x8c\x08builtins\x8c\x04eval\x93\x8c\x021+\x85R.",
                             "would call builtins.eval"),
    "global kept in the memo": (b"\x80\x02cposix\nsystem\nq\x010h\x01X\x01\0\0\0a\x85R.",
                                "would call posix.system"),
    "inside a harmless call": (
        b"\x80\x02ccollections\nOrderedDict\n)Rcposix\nsystem\nX\x01\0\0\0a\x85Rb.",
        "would call posix.system",
    ),
    "state of a class": (b"\x80\x02ctorch.nn\nModule\n}b.",
                         "would set the state of torch.nn.Module"),
    "numpy's own loader": (b"\x80\x02cnumpy\nload\nX\x01\0\0\0a\x85R.", "would call numpy.load"),
    "torch's own loader": (b"\x80\x02ctorch\nload\nX\x01\0\0\0a\x85R.", "would call torch.load"),
    "the class of a module": (
        b"\x80\x02(X\x06\0\0\0modulecposix\nsystem\nX\x01\0\0\0aX\x01\0\0\0atQ)\x81.",
        "would call posix.system",
    ),
    "a tensor of a type": (
        b"\x80\x02ctorch._tensor\n_rebuild_from_type_v2\n(cposix\nsystem\nN(X\x01\0\0\0at}tR.",
        "would call posix.system",
    ),
    "what a dictionary is made from": (
        b"\x80\x02ccollections\nOrderedDict\n]\x85R.", "would call collections.OrderedDict",
    ),
    "a name of several lines": (
        b"\x80\x04\x8c\x03a\n\x1b\x8c\x03b\nc\x93)R.", "would call a .b c when unpickled",
    ),
    "a storage of a view": (
        b"\x80\x02(X\x07\0\0\0storagectorch\nFloatStorage\nX\x01\0\0\0aNK\x01(X\x01\0\0\0b"
        b"K\0K\x01ttQ.", "not a tensor storage",
    ),
    "a key too deep to hash": (
        b"\x80\x02})" + b"\x85" * 200_000 + b"Ns.", "keys are not names or numbers",
    ),
    "a storage too deep to hash": (
        b"\x80\x02(X\x07\0\0\0storagectorch\nFloatStorage\n)" + b"\x85" * 200_000 + b"NK\x01tQ.",
        "not a tensor storage",
    ),
    "a storage that is none": (
        b"\x80\x02(X\x07\0\0\0storagecposix\nsystem\nX\x01\0\0\0aNK\x01tQ.",
        "not a tensor storage",
    ),
}  # fmt: skip


def test_marks_take_time_once_each(tmp_path):
    """Each mark is found at once, whatever lies below it: in a second, not most of an hour."""
    count = 200_000
    program = b"\x80\x02}X\x01\0\0\0a](" + b"(t" * count + b"es" + b"X\x01\0\0\0b(0(0" + b"Ns."
    with zipfile.ZipFile(tmp_path / "a.ckpt", "w") as archive:
        archive.writestr("a/data.pkl", program)
    found = read_pickle(tmp_path / "a.ckpt")
    assert found == {"a": [()] * count, "b": None}


@pytest.mark.parametrize("name", PROGRAMS)
def test_every_way_to_call_is_refused(name, tmp_path, monkeypatch):
    program, message = PROGRAMS[name]
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "a.ckpt"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("a/data.pkl", program)
    refused(message, read_single_file, path)
    assert [entry.name for entry in tmp_path.iterdir()] == ["a.ckpt"]


def test_reading_a_pickle_imports_nothing(files):
    """A reader that never imports what a pickle names cannot run it, and needs no torch."""
    program = (
        "import sys; from sdjax.weights.single_file import read_file\n"
        f"read_file({str(files / 'a.ckpt')!r})[0]['counts'].load()\n"
        f"read_file({str(files / 'a.pt')!r})[0]['counts'].load()\n"
        "import sdjax.pipeline; print(sorted({'torch', 'diffusers'} & set(sys.modules)))"
    )
    run = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True,
                         env=os.environ | {"PYTHONPATH": ROOT}, timeout=120)  # fmt: skip
    assert run.stdout == "[]\n", run.stderr


def test_changed_bytes_of_a_pickled_tensor_are_noticed(files, tmp_path):
    whole = bytearray((files / "a.ckpt").read_bytes())
    place = whole.index(np.ones(4, np.float32).tobytes())
    whole[place] ^= 1
    (tmp_path / "a.ckpt").write_bytes(bytes(whole))
    state, _ = read_file(tmp_path / "a.ckpt")
    refused("checksum of storage 0 is wrong", state[next(iter(TENSORS))].load)


def test_truncated_files(files, tmp_path):
    for name in ("a.safetensors", "a.ckpt", "a.pt"):
        whole = (files / name).read_bytes()
        for share in (0.1, 0.5, 0.9):
            path = tmp_path / name
            path.write_bytes(whole[: int(len(whole) * share)])
            with pytest.raises(sdjax.SdjaxError):
                for tensor in read_file(path)[0].values():
                    tensor.load()


def changed(whole, place, value):
    return bytes(whole[:place]) + bytes([value]) + bytes(whole[place + 1 :])


def test_what_a_file_is_not(files, tmp_path):
    text = tmp_path / "note.safetensors"
    text.write_text("this was never a checkpoint")
    refused("not a safetensors file or is truncated", read_single_file, text)
    text.rename(tmp_path / "note.ckpt")
    refused("neither a safetensors nor a PyTorch file", read_single_file, tmp_path / "note.ckpt")
    with zipfile.ZipFile(tmp_path / "a.ckpt", "w") as archive:
        archive.writestr("readme", "a zip file")
    refused("without a PyTorch data.pkl", read_single_file, tmp_path / "a.ckpt")
    whole = bytearray((files / "a.ckpt").read_bytes())
    directory = whole.index(b"PK\x01\x02")
    for offset, value in ((8, 1), (10, zipfile.ZIP_LZMA)):  # flags; the way of compression
        (tmp_path / "b.ckpt").write_bytes(changed(whole, directory + offset, value))
        refused("encrypted, or compressed otherwise", read_file, tmp_path / "b.ckpt")
    refused("no such model folder or file", locate, tmp_path / "absent")
    write_safetensors(tmp_path / "other.safetensors", {"x.weight": lazy(np.zeros(3))})
    refused("not a Stable Diffusion checkpoint", read_single_file, tmp_path / "other.safetensors")


def test_a_missing_tensor_is_named(files):
    refused("is missing", read_single_file, files / "a.safetensors")


def test_contradictory_header(tmp_path):
    def written(entry):
        header = json.dumps({"a": entry}).encode()
        path = tmp_path / "a.safetensors"
        path.write_bytes(len(header).to_bytes(8, "little") + header + bytes(8))
        return path

    good = {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}
    assert read_safetensors(written(good))[0]["a"].load().tolist() == [0, 0]
    for change, message in (
        ({"shape": [3]}, "takes 12 bytes"),
        ({"dtype": "F31"}, "dtype 'F31'"),
        ({"shape": [-2]}, "not a shape"),
        ({"data_offsets": [8, 0]}, "span -8"),
        ({"data_offsets": [4, 12]}, "truncated"),
        ({"shape": "2"}, "not a shape"),
    ):
        refused(message, read_safetensors, written({**good, **change}))


def test_fp16_overflow_is_named(tmp_path):
    state = {"a": lazy(np.float32([1e6]))}
    refused("above float16's 65504", write_safetensors, tmp_path / "a.safetensors", state, "fp16")
    assert not list(tmp_path.iterdir())
