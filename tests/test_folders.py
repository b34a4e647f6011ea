"""Paths that are not of this machine, in every command."""

import re
import sys
from pathlib import Path

import pytest

import main
from sdjax import EMOJI, StableDiffusion
from sdjax.data import DataConfig, open_source
from sdjax.errors import SdjaxError
from sdjax.folders import check_local
from sdjax.text.tokenizer import BEGIN, END, Tokenizer
from sdjax.weights.adapters import read_lora
from sdjax.weights.folder import write_json
from sdjax.weights.tensors import write_safetensors
from sdjax.weights.textual_inversion import read_textual_inversion

AWAY = "gs://bucket/folder"
TOLD = "gs:// is not supported|^(error: )?gs://.* cannot be reached: pip install gcsfs"


@pytest.fixture(autouse=True)
def without_a_package(monkeypatch):
    """What reads and writes such addresses asks for the package then, and the network is let be."""
    monkeypatch.setitem(sys.modules, "gcsfs", None)


@pytest.mark.parametrize("path", [
    AWAY, Path(AWAY), "s3://bucket", "https://host/model.safetensors", "hf://owner/name",
])
def test_an_address_is_no_path(path):
    with pytest.raises(SdjaxError, match=r"expected a path on this machine, got .*:// is not"):
        check_local(path)


@pytest.mark.parametrize("path", [
    "folder", "/folder", "C:/folder", "C:\\folder", "a:b/c", "owner/name", Path("x") / "y:z",
])
def test_a_path_of_this_machine_is_one(path):
    check_local(path)


SMALL = ["train", "--config", "{here}/small.py", "--workdir"]


@pytest.mark.parametrize("command", [
    ["sample", "--prompt", "a", "--out", AWAY],
    ["sample", "--prompt", "a", "--model", AWAY],
    ["evaluate", "nearest-neighbour", "--out", AWAY],
    ["evaluate", "nearest-neighbour", "--out", "{here}/out", "--model", AWAY],
    ["convert", AWAY, "{here}/out"],
    ["convert", str(EMOJI / "vae"), AWAY],
    ["convert", str(EMOJI / "vae"), AWAY + ".safetensors"],
    ["train", "--config", AWAY, "--workdir", "{here}/out"],
    [*SMALL, AWAY],
    [*SMALL, "{here}/out", "--data.source", f"folder:{AWAY}"],
    [*SMALL, "{here}/out", "--data.data-dir", AWAY],
], ids=lambda command: "-".join(command[::2]))
def test_every_command_refuses_it_in_one_line(command, tmp_path, monkeypatch, capsys):
    (tmp_path / "small.py").write_text("from tests.training.small import PIXELS as config")
    monkeypatch.chdir(tmp_path)
    assert main.main([part.format(here=tmp_path) for part in command]) == 2
    printed = capsys.readouterr()
    assert re.search(TOLD, printed.err)
    assert printed.out == "" and printed.err.count("\n") == 1
    assert not (tmp_path / "gs:").exists()


@pytest.mark.parametrize("attempt", [
    lambda: write_json(AWAY + "/config.json", {}),
    lambda: write_safetensors(AWAY + "/model.safetensors", {}),
    lambda: Tokenizer({BEGIN: 0, END: 1}, []).save_pretrained(AWAY),
    lambda: StableDiffusion.from_pretrained(AWAY),
    lambda: read_lora(AWAY, {}),
    lambda: read_textual_inversion(AWAY, {}, ()),
    lambda: open_source(DataConfig(f"folder:{AWAY}")),
])
def test_what_reads_and_writes_refuses_it_too(attempt, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SdjaxError, match=TOLD):
        attempt()
    assert not (tmp_path / "gs:").exists()
