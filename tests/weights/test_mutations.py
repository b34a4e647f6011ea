"""Files with bytes or values changed at random: our error in one line, or a file that reads."""

import json
import random

import numpy as np
import pytest
import torch

import sdjax
from sdjax import diffusion
from sdjax.weights.adapters import read_lora, with_adapters
from sdjax.weights.single_file import read_file, read_single_file
from sdjax.weights.tensors import lazy, write_safetensors
from sdjax.weights.textual_inversion import read_textual_inversion
from tests.weights.small import random_pipeline

PARAMS = {
    "unet": {
        "conv_in": {"kernel": np.ones((3, 3, 4, 16), np.float32)},
        "mid_block": {"attentions.0": {"proj_in": {"kernel": np.ones((16, 16), np.float32)}}},
    },
    "text_encoder": {
        "embeddings": {"token_embedding": {"embedding": np.ones((10, 24), np.float32)}},
        "encoder": {"layers.0": {"self_attn": {"q_proj": {"kernel": np.ones((24, 24))}}}},
    },
}
CHECKPOINT = {
    "first_stage_model.encoder.conv_in.weight": (4, 3, 3, 3),
    "model.diffusion_model.input_blocks.0.0.bias": (4,),
    "counts": (3,),
}
LOKR = "lora_unet_mid_block_attentions_0_proj_in"
LORA = {
    "unet.conv_in.lora_A.weight": (2, 4, 3, 3),
    "unet.conv_in.lora_B.weight": (16, 2, 1, 1),
    "unet.conv_in.lora_magnitude_vector": (1, 16, 1, 1),
    f"{LOKR}.lokr_w1": (4, 4),
    f"{LOKR}.lokr_w2_a": (4, 2),
    f"{LOKR}.lokr_w2_b": (2, 4),
    f"{LOKR}.alpha": (),
    "text_encoder.text_model.encoder.layers.0.self_attn.to_q_lora.down.weight": (2, 24),
    "text_encoder.text_model.encoder.layers.0.self_attn.to_q_lora.up.weight": (24, 2),
}
PEFT = {"unet.r": 2, "unet.lora_alpha": 4, "unet.alpha_pattern": {"conv_in": 3}}
# What stands in a changed JSON file where something else stood.
ODD = (None, True, -1, 0.5, float("nan"), "x", "", [], {}, [None], {"a": 1}, [[1]], "../x", "a\nb")


def read_checkpoint(path):
    for tensor in read_file(path)[0].values():
        tensor.load()
    read_single_file(path)


def read_adapter(path):
    with_adapters(PARAMS, [(read_lora(path, PARAMS), 1.0)])


def read_word(path):
    read_textual_inversion(path, PARAMS, ("text_encoder",))


def write(path, shapes, metadata=None):
    """Ones as safetensors, or in PyTorch's formats, .pt being the older one."""
    if path.suffix == ".safetensors":
        ones = {key: lazy(np.ones(shape, np.float32)) for key, shape in shapes.items()}
        write_safetensors(path, ones, metadata=metadata)
    else:
        ones = {key: torch.ones(shape) for key, shape in shapes.items()}
        torch.save(ones, path, _use_new_zipfile_serialization=path.suffix != ".pt")


def write_word(path, _):
    words = torch.nn.ParameterDict({"*": torch.ones(2, 24)})
    torch.save({"string_to_param": words, "name": "cat"}, path)


MUTATIONS = 340  # of each kind of file
FILES = {  # kind: file, what it holds, how it is written and read
    "checkpoint": ("a.safetensors", CHECKPOINT, write, read_checkpoint),
    "pickled": ("a.ckpt", CHECKPOINT, write, read_checkpoint),
    "older pickled": ("a.pt", CHECKPOINT, write, read_checkpoint),
    "LoRA": ("a.safetensors", LORA, write, read_adapter),
    "pickled LoRA": ("a.bin", LORA, write, read_adapter),
    "word": ("a.safetensors", {"clip_l": (2, 24)}, write, read_word),
    "A1111's word": ("a.pt", None, write_word, read_word),
}


def changed(whole, rng):
    """Bytes with one to eight places changed, taken out or filled in."""
    changed = bytearray(whole)
    for _ in range(rng.randint(1, 8)):
        place = rng.randrange(len(changed))
        kind = rng.random()
        if kind < 0.6:
            changed[place] = rng.randrange(256)
        elif kind < 0.8:
            del changed[place : place + rng.randint(1, min(64, len(changed) - 1))]
        else:
            changed[place:place] = rng.randbytes(rng.randint(1, 64))
    return bytes(changed)


def changed_json(text, rng):
    """The text of a JSON object with one of its values, at any depth, replaced or taken out."""
    value = json.loads(text)
    inside, name = value, rng.choice(list(value))
    while isinstance(inside[name], dict | list) and inside[name] and rng.random() < 0.7:
        inside = inside[name]
        name = rng.choice(list(inside) if isinstance(inside, dict) else range(len(inside)))
    if rng.random() < 0.2:
        del inside[name]
    else:
        inside[name] = rng.choice(ODD)
    return json.dumps(value)


def raises_only_our_error(read, *arguments):
    try:
        read(*arguments)
    except sdjax.SdjaxError as error:
        assert str(error).isprintable() and str(error)  # so that it has no line break


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kind", FILES)
def test_changed_bytes(kind, tmp_path):
    name, content, make, read = FILES[kind]
    make(tmp_path / name, content)
    read_intact(kind, read, tmp_path / name)
    whole, rng = (tmp_path / name).read_bytes(), random.Random(0)
    for _ in range(MUTATIONS):
        (tmp_path / name).write_bytes(changed(whole, rng))
        raises_only_our_error(read, tmp_path / name)


def read_intact(kind, read, path):
    """The file before it is changed: read, but for checkpoints, of which this is a small part."""
    if "checkpoint" in kind or kind.endswith("pickled"):
        with pytest.raises(sdjax.SdjaxError, match="is missing"):
            read(path)
    else:
        read(path)


@pytest.mark.filterwarnings("ignore")
def test_changed_configuration_of_an_adapter(tmp_path):
    rng = random.Random(0)
    for _ in range(MUTATIONS):
        metadata = {"lora_adapter_metadata": changed_json(json.dumps(PEFT), rng)}
        write(tmp_path / "a.safetensors", LORA, metadata)
        raises_only_our_error(read_adapter, tmp_path / "a.safetensors")


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ({"beta_start": "0.1"}, "beta_start must be a number, got '0.1'"),
        ({"steps_offset": [1]}, r"steps_offset must be a number, got \[1\]"),
        ({"beta_schedule": ["linear"]}, r"beta_schedule must be text, got \['linear'\]"),
        ({"beta_end": -1}, "must lie in 0 … 1 .* got 0.0001, -1 and 1000"),
        ({"num_train_timesteps": 0}, r"num_train_timesteps in 1 … 10\^6"),
        ({"trained_betas": {"a": 1}}, "trained_betas: "),
        ({"_class_name": ["DDIMScheduler"]}, "unsupported _class_name"),
    ],
)
def test_settings_of_a_scheduler_that_are_none(setting, message):
    with pytest.raises(sdjax.SdjaxError, match=f"scheduler configuration: .*{message}"):
        diffusion.sampler_from_config({"_class_name": "DDIMScheduler", **setting}, 5)


def read_folder(folder):
    model = sdjax.StableDiffusion.from_pretrained(folder)
    diffusion.sampler_from_config(model.scheduler_config, 5)


@pytest.mark.filterwarnings("ignore")
def test_changed_configurations_and_tokenizers_of_a_folder(tmp_path):
    random_pipeline().save_pretrained(tmp_path)
    read_folder(tmp_path)
    rng = random.Random(0)
    for path in sorted(tmp_path.rglob("*")):
        if path.suffix not in (".json", ".txt"):
            continue
        whole = path.read_bytes()
        for i in range(8):
            if path.suffix == ".json" and i % 4:
                path.write_text(changed_json(whole, rng))
            else:
                path.write_bytes(changed(whole, rng))
            raises_only_our_error(read_folder, tmp_path)
        path.write_bytes(whole)
