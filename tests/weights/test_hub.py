"""Hub ids, with huggingface_hub itself against a small hub of this machine's own."""

import json
import os
import shutil
import subprocess
import sys
from fnmatch import fnmatch
from pathlib import Path

import numpy as np
import pytest

import sdjax
import sdjax.weights.hub as hub_patterns
from sdjax.weights.tensors import lazy, write_safetensors
from tests.weights.hub_server import commit_of, served
from tests.weights.small import random_pipeline

# huggingface_hub reads its settings when it is imported, so each call has a process of its own.
PROGRAM = """
import json, sys
from sdjax import SdjaxError
from sdjax.weights.hub import locate
for source, variant, revision in json.loads(sys.argv[1]):
    try:
        print(json.dumps(["found", str(locate(source, variant, revision))]))
    except SdjaxError as error:
        print(json.dumps(["error", str(error)]))
"""


def located(address, cache, *requests, offline=False):
    """What `locate` gives for each (source, variant, revision): paths, or errors' lines."""
    environment = os.environ | {
        "HF_ENDPOINT": address,
        "HF_HUB_CACHE": str(cache),
        "HF_HUB_OFFLINE": str(int(offline)),
        "HF_HUB_DISABLE_PROGRESS_BARS": "1",
        "NO_PROXY": "127.0.0.1",
        "PYTHONPATH": str(Path(sdjax.__file__).parents[1]),
    }
    run = subprocess.run(
        [sys.executable, "-c", PROGRAM, json.dumps(requests)],
        env=environment, capture_output=True, text=True, timeout=120, check=True,
    )  # fmt: skip
    answers = [json.loads(line) for line in run.stdout.splitlines()]
    assert len(answers) == len(requests)
    assert all("\n" not in text for kind, text in answers if kind == "error")
    return [Path(text) if kind == "found" else text for kind, text in answers]


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A pipeline with plain and fp16 weights, and much besides that is not for us."""
    folder = tmp_path_factory.mktemp("whole")
    random_pipeline().save_pretrained(folder)
    random_pipeline().save_pretrained(folder, "float16", variant="fp16")
    for name in ("v1-5-pruned.safetensors", "unet/diffusion_pytorch_model.non_ema.safetensors",
                 "unet/diffusion_pytorch_model.bin", "safety_checker/model.safetensors",
                 "safety_checker/config.json", "README.md", "unet/flax_model.msgpack"):  # fmt: skip
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text("not to be downloaded")
    return folder


@pytest.fixture(scope="module")
def part(tmp_path_factory):
    """An autoencoder alone, whose weights are pickled."""
    import torch

    folder = tmp_path_factory.mktemp("part")
    model = random_pipeline()
    model.vae.save_pretrained(model.params["vae"], folder)
    path = folder / "diffusion_pytorch_model.safetensors"
    state, _ = sdjax.weights.tensors.read_safetensors(path)
    torch.save(
        {key: torch.from_numpy(tensor.load()) for key, tensor in state.items()},
        folder / "diffusion_pytorch_model.bin",
    )
    path.unlink()
    return folder


@pytest.fixture(scope="module")
def hub(whole, part, tmp_path_factory):
    """(address of the hub, files it sent, cache)."""
    broken = tmp_path_factory.mktemp("broken")
    (broken / "config.json").write_text("{}")
    repositories = {
        "someone/model": {"main": whole, "other": part},
        "someone/vae": {"main": part},
        "someone/empty": {"main": broken},
    }
    mixed = tmp_path_factory.mktemp("mixed")
    shutil.copytree(whole, mixed, dirs_exist_ok=True)
    for lost in ("vae/*.fp16.safetensors", "text_encoder/*.safetensors"):
        for path in mixed.glob(lost):
            path.unlink()
    (mixed / "text_encoder/pytorch_model.bin").write_bytes(b"pickled")
    repositories["someone/mixed"] = {"main": mixed}
    with served(repositories) as (address, sent):
        yield address, sent, tmp_path_factory.mktemp("cache")


def test_parts_without_the_variant_are_downloaded_plain(hub):
    address, sent, cache = hub
    sent.clear()
    found, absent = located(
        address, cache, ("someone/mixed", "fp16", None), ("someone/mixed", "bf16", None)
    )
    assert {name for name in sent if not name.endswith((".json", ".txt"))} == {
        "unet/diffusion_pytorch_model.fp16.safetensors",
        "vae/diffusion_pytorch_model.safetensors",
        "text_encoder/pytorch_model.bin",
    }
    assert (found / "unet/config.json").is_file()
    assert "has no weights in bf16 variant of" in absent


def test_only_what_is_read_is_downloaded_once(hub, whole):
    address, sent, cache = hub
    sent.clear()
    (found,) = located(address, cache, ("someone/model", None, None))
    common = {"model_index.json", "scheduler/scheduler_config.json", "unet/config.json",
              "vae/config.json", "text_encoder/config.json", "tokenizer/vocab.json",
              "tokenizer/merges.txt", "tokenizer/tokenizer_config.json",
              "tokenizer/special_tokens_map.json"}  # fmt: skip
    plain = {"unet/diffusion_pytorch_model.safetensors", "vae/diffusion_pytorch_model.safetensors",
             "text_encoder/model.safetensors"}  # fmt: skip
    assert set(sent) == common | plain and len(sent) == len(set(sent))
    model = sdjax.StableDiffusion.from_pretrained(found)
    expected = sdjax.StableDiffusion.from_pretrained(whole)
    np.testing.assert_array_equal(
        model.params["unet"]["conv_in"]["kernel"], expected.params["unet"]["conv_in"]["kernel"]
    )
    sent.clear()
    again, half = located(address, cache, ("someone/model",) + (None,) * 2,
                          ("someone/model", "fp16", "main"))  # fmt: skip
    assert again == half == found
    assert set(sent) == {name.replace(".safetensors", ".fp16.safetensors") for name in plain}
    model = sdjax.StableDiffusion.from_pretrained(half, variant="fp16", dtype="float16")
    assert model.params["unet"]["conv_in"]["kernel"].dtype == np.float16


def test_revision_and_part_alone_with_pickled_weights(hub):
    address, sent, cache = hub
    sent.clear()
    other, alone, by_commit = located(
        address, cache, ("someone/model", None, "other"), ("someone/vae", None, None),
        ("someone/model", None, commit_of("other")),
    )  # fmt: skip
    assert other == by_commit and other.name == commit_of("other")
    assert sorted(set(sent)) == ["config.json", "diffusion_pytorch_model.bin"]
    vae, params = sdjax.VAE.from_pretrained(alone)
    assert params["encoder"]["conv_in"]["kernel"].shape == (3, 3, 3, 16)


def test_the_cache_alone_serves_offline_and_without_network(hub, tmp_path):
    address, sent, cache = hub
    (online,) = located(address, cache, ("someone/model", None, None))
    sent.clear()
    requests = (("someone/model", None, None), ("someone/model", None, "unseen"),
                ("someone/else", None, None))  # fmt: skip
    for options in ({"offline": True}, {"offline": False}):
        # Nothing answers at that address.
        found, unseen, absent = located("http://127.0.0.1:9", cache, *requests, **options)
        assert found == online
        assert "revision unseen of it is not in the cache, and the hub cannot be reached" in unseen
        assert "HF_HUB_OFFLINE" in absent and absent.startswith("no such model folder or file")
    assert sent == []


def test_one_line_says_what_the_hub_does_not_have(hub):
    address, _, cache = hub
    nobody, revision, variant, empty = located(
        address, cache, ("nobody/nothing", None, None), ("someone/model", None, "v9"),
        ("someone/model", "fp8", None), ("someone/empty", None, None),
    )  # fmt: skip
    assert "nor a public repository of that name on the hub" in nobody
    assert revision == "the hub's someone/model has no revision v9"
    assert "has no weights in fp8 variant of vae" in variant or "fp8 variant of unet" in variant
    assert "has no weights in plain form" in empty and "of the model" in empty


@pytest.mark.parametrize("ending", ["safetensors", "bin"])
@pytest.mark.parametrize("variant", [None, "fp16"])
def test_shards_of_either_way_of_naming_match(variant, ending):
    """That of a variant once stood after the shard's number."""
    stem = "diffusion_pytorch_model"
    names = [f"{stem}{f'.{variant}' if variant else ''}-00001-of-00002.{ending}"]
    names += [f"{stem}-00001-of-00002.{variant}.{ending}"] * bool(variant)
    names += [f"{stem}.{ending}.index{f'.{variant}' if variant else ''}.json"]
    patterns = (hub_patterns._safetensors if ending == "safetensors" else hub_patterns._pickles)(
        variant
    )
    for name in names:
        for folder in ("", "unet/"):
            assert any(fnmatch(folder + name, folder + pattern) for pattern in patterns), name


def test_half_downloaded_shards_in_the_cache_are_named(tmp_path):
    """A cache folder as huggingface_hub lays it out, of a download that was broken off."""
    commit = "0" * 40
    home = tmp_path / "models--someone--shards"
    folder = home / "snapshots" / commit
    (home / "refs").mkdir(parents=True)
    (home / "refs" / "main").write_text(commit)
    model = random_pipeline()
    model.unet.save_pretrained(model.params["unet"], folder)
    whole = folder / "diffusion_pytorch_model.safetensors"
    names = [f"diffusion_pytorch_model-0000{i}-of-00002.safetensors" for i in (1, 2)]
    state, _ = sdjax.weights.tensors.read_safetensors(whole)
    index = {"weight_map": {key: names[i % 2] for i, key in enumerate(state)}}
    (folder / "diffusion_pytorch_model.safetensors.index.json").write_text(json.dumps(index))
    write_safetensors(
        folder / names[0],
        {k: lazy(t.load()) for k, t in state.items() if index["weight_map"][k] == names[0]},
    )
    whole.unlink()
    (found,) = located("http://127.0.0.1:9", tmp_path, ("someone/shards", None, None), offline=True)
    assert found == folder
    with pytest.raises(sdjax.SdjaxError, match=f"names the shard {names[1]}, which is not in"):
        sdjax.UNet.from_pretrained(found)
