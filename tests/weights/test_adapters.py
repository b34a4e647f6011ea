"""Adapters in the names and forms of every trainer, against peft and formulas of their own."""

import itertools

import numpy as np
import peft
import pytest
import torch
from safetensors.torch import save_file

from sdjax import SdjaxError
from sdjax.weights import lora
from sdjax.weights.adapters import read_adapter, read_lora, with_adapters
from sdjax.weights.names import params_from_state, state_from_params
from sdjax.weights.tensors import lazy
from sdjax.weights.textual_inversion import read_textual_inversion

TO_Q = "up_blocks.1.attentions.2.transformer_blocks.0.attn2.to_q"
THERE = "output_blocks.5.1.transformer_blocks.0.attn2.to_q"
TEXT = "text_model.encoder.layers.0.self_attn.q_proj"
SHAPES = {
    "unet": {
        "conv_in.weight": (16, 4, 3, 3),
        "conv_in.bias": (16,),
        f"{TO_Q}.weight": (16, 12),
        "conv_norm_out.weight": (16,),
        "conv_norm_out.bias": (16,),
    },
    "text_encoder": {f"{TEXT}.weight": (8, 8), f"{TEXT}.bias": (8,)},
    "text_encoder_2": {f"{TEXT}.weight": (10, 10), f"{TEXT}.bias": (10,)},
}
# Names of modules of (part, module).
SPELLINGS = {
    ("unet", TO_Q): [
        *(TO_Q, THERE, f"unet.{TO_Q}", f"unet.{THERE}", f"diffusion_model.{THERE}"),
        *(f"model.diffusion_model.{THERE}", f"base_model.model.{TO_Q}"),
        *("lora_unet_" + name.replace(".", "_") for name in (TO_Q, THERE)),
        "lycoris_" + TO_Q.replace(".", "_"),
    ],
    ("unet", "conv_in"): [
        *("conv_in", "unet.conv_in", "unet.input_blocks.0.0", "diffusion_model.input_blocks.0.0"),
        *("lora_unet_conv_in", "lora_unet_input_blocks_0_0", "lycoris_conv_in"),
    ],
    ("text_encoder", TEXT): [
        *(f"text_encoder.{TEXT}", f"text_encoders.clip_l.transformer.{TEXT}"),
        *(f"clip_l.transformer.{TEXT}", f"clip_l.{TEXT}", f"base_model.model.{TEXT}"),
        *(prefix + TEXT.replace(".", "_") for prefix in ("lora_te_", "lora_te1_", "lycoris_")),
    ],
    ("text_encoder_2", TEXT): [
        *(f"text_encoder_2.{TEXT}", f"text_encoders.clip_g.transformer.{TEXT}"),
        *(f"clip_g.transformer.{TEXT}", f"base_model.model.{TEXT}"),
        *(prefix + TEXT.replace(".", "_") for prefix in ("lora_te2_", "lycoris_")),
    ],
}
PAIRS = [
    *(("lora_down.weight", "lora_up.weight"), ("lora.down.weight", "lora.up.weight")),
    ("lora_linear_layer.down.weight", "lora_linear_layer.up.weight"),
    *((f"lora_A{end}", f"lora_B{end}") for end in ("", ".weight", ".default.weight", ".my-own_1")),
    ("lora_A.my_adapter.weight", "lora_B.my_adapter.weight"),
]
MAGNITUDES = [
    *("magnitude", "dora_scale", "lora_magnitude_vector", "lora_magnitude_vector.weight"),
    *("lora_magnitude_vector.default", "lora_magnitude_vector.default.weight"),
    "lora_magnitude_vector.my_adapter.weight",
]


def draw(*shape):
    return np.random.RandomState(sum(shape)).randn(*shape).astype(np.float32)


WEIGHTS = {
    part: {key: draw(*shape) for key, shape in shapes.items()} for part, shapes in SHAPES.items()
}


def read(tensors, configs=None):
    state = {key: lazy(np.asarray(value)) for key, value in tensors.items()}
    return read_adapter(state, SHAPES, 2, configs)


def changed(tensors, part, key, strength=1.0, configs=None):
    """The weight at `key` that adapters of these tensors make; they change no other."""
    adapter = read(tensors, configs)
    assert list(adapter.factors) == [(part, key)] and not adapter.unused
    return lora.adapted(WEIGHTS[part][key], [(adapter.factors[part, key], strength)])


@pytest.mark.parametrize("module", SPELLINGS, ids=" ".join)
def test_every_name_of_a_factor_under_every_name_of_a_module(module):
    part, name = module
    weight = WEIGHTS[part][f"{name}.weight"]
    rows, *columns = weight.shape
    down, up = draw(2, *columns), draw(rows, 2)
    expected = weight + 1.5 * np.tensordot(up, down, 1)
    for spelling, (a, b) in itertools.product(SPELLINGS[module], PAIRS):
        tensors = {f"{spelling}.{a}": down, f"{spelling}.{b}": up, f"{spelling}.alpha": 3.0}
        found = changed(tensors, part, f"{name}.weight")
        np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5, err_msg=spelling)
    lengths = np.sqrt((expected.reshape(rows, -1) ** 2).sum(1))
    learned = np.abs(draw(rows))
    expected *= (learned / lengths).reshape(rows, *(1,) * len(columns))
    for spelling, magnitude in itertools.product(SPELLINGS[module], MAGNITUDES):
        shape = (rows, *(1,) * len(columns)) if magnitude == "dora_scale" else (rows,)
        tensors = {
            f"{spelling}.lora_down.weight": down, f"{spelling}.lora_up.weight": up,
            f"{spelling}.alpha": 3.0, f"{spelling}.{magnitude}": learned.reshape(shape),
        }  # fmt: skip
        found = changed(tensors, part, f"{name}.weight")
        np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5, err_msg=magnitude)


def peft_network():
    """Two layers of the U-Net by its names, with its weights."""
    names = TO_Q.split(".")
    linear, conv = torch.nn.Linear(12, 16, bias=False), torch.nn.Conv2d(4, 16, 3)
    linear.weight.data = torch.from_numpy(WEIGHTS["unet"][f"{TO_Q}.weight"]).clone()
    conv.weight.data = torch.from_numpy(WEIGHTS["unet"]["conv_in.weight"]).clone()
    nested = linear
    for name in reversed(names[1:]):
        nested = torch.nn.ModuleDict({name: nested})
    return torch.nn.ModuleDict({names[0]: nested, "conv_in": conv})


def check_against_peft(config, adapter_name="default"):
    """The raw state of peft's own modules, of linear layers and convolutions."""
    torch.manual_seed(0)
    wrapped = peft.get_peft_model(peft_network(), config, adapter_name=adapter_name)
    tensors = {}
    for key, value in wrapped.named_parameters():
        if value.requires_grad:
            value.data = 0.3 * torch.randn_like(value) + ("magnitude" in key)
            tensors[key] = value.detach().clone().numpy()
    assert all(f".{adapter_name}" in key for key in tensors) and len(tensors) >= 2
    adapter = read(tensors, {"unet": config.to_dict()})
    merged = wrapped.merge_and_unload().state_dict()
    for key in (f"{TO_Q}.weight", "conv_in.weight"):
        weight = WEIGHTS["unet"][key]
        found = lora.adapted(weight, [(adapter.factors["unet", key], 1)])
        np.testing.assert_allclose(found, merged[key].numpy(), rtol=1e-4, atol=1e-5)
        assert np.abs(found - weight).max() > 0.1


TARGET_MODULES = {"target_modules": ["to_q", "conv_in"]}


@pytest.mark.parametrize("name", ["default", "my_adapter"])
def test_raw_dora_of_peft(name):
    config = peft.LoraConfig(r=2, lora_alpha=3, use_dora=True, **TARGET_MODULES)
    check_against_peft(config, name)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"use_cayley_neumann": False},
        {"num_cayley_neumann_terms": 3},
        {"num_cayley_neumann_terms": 7},
        {"block_share": True},
    ],
    ids=str,
)
def test_rotations_of_peft(options):
    check_against_peft(peft.OFTConfig(r=0, oft_block_size=4, **TARGET_MODULES, **options))


def test_whole_differences_of_weights_norms_and_biases():
    names = {
        "lora_unet_conv_in.diff": "conv_in.weight",
        "lora_unet_conv_in.diff_b": "conv_in.bias",
        "lycoris_conv_norm_out.w_norm": "conv_norm_out.weight",
        "diffusion_model.out.0.b_norm": "conv_norm_out.bias",
    }
    differences = {key: draw(*SHAPES["unet"][name]) + 1 for key, name in names.items()}
    adapter = read(differences)
    params = {"unet": params_from_state({k: lazy(v) for k, v in WEIGHTS["unet"].items()})}
    found = state_from_params(with_adapters(params, [(adapter, 0.5), (adapter, 0.25)])["unet"])
    for key, name in names.items():
        expected = WEIGHTS["unet"][name] + 0.75 * differences[key]
        np.testing.assert_allclose(found[name].load(), expected, rtol=1e-5, atol=1e-6)
    other = f"{TO_Q}.weight"
    np.testing.assert_array_equal(found[other].load(), WEIGHTS["unet"][other])


def block_diagonal(blocks, alpha, rows, strength):
    """sd-scripts' rotation of all rows in one matrix, from its paper's formula."""
    q = torch.from_numpy(blocks - blocks.swapaxes(-1, -2)).double()
    if alpha:
        q = q * min(1, alpha * rows / torch.linalg.norm(q))
    eye = torch.eye(q.shape[-1], dtype=torch.float64)
    r = torch.linalg.solve(eye - q, eye + q)  # the two commute
    return torch.block_diag(*(eye + strength * (r - eye)))


@pytest.mark.parametrize("strength", [1, 0.5])
@pytest.mark.parametrize("alpha", [None, 0, 0.01, 10])
@pytest.mark.parametrize("key", [f"{TO_Q}.weight", "conv_in.weight"])
def test_rotations_of_rows(key, alpha, strength):
    """Diag-OFT of sd-scripts and LyCORIS; the alpha bounds the angle."""
    blocks, rescale = draw(4, 4, 4), 1 + 0.1 * draw(16)
    name, weight = key.removesuffix(".weight"), WEIGHTS["unet"][key]
    tensors = {f"{name}.oft_blocks": blocks}
    if alpha is not None:
        tensors[f"{name}.alpha"] = alpha
    rotation = block_diagonal(blocks, alpha, 16, strength).numpy()
    expected = (rotation.T @ weight.reshape(16, -1)).reshape(weight.shape)
    found = changed(tensors, "unet", key, strength)
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)
    ones = (1,) * (weight.ndim - 1)
    tensors[f"{name}.rescale"] = rescale.reshape(16, *ones)
    found = changed(tensors, "unet", key, strength)
    np.testing.assert_allclose(found, expected * rescale.reshape(16, *ones), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("strength", [1, 0.5])
def test_butterflies_of_rows(strength):
    """BOFT of LyCORIS: stage i turns rows that are 2ⁱ·b/2 apart, each step in one matrix."""
    blocks, alpha = draw(3, 4, 4, 4), 0.03
    expected = WEIGHTS["unet"]["conv_in.weight"].reshape(16, -1)
    whole = block_diagonal(blocks.reshape(12, 4, 4), alpha, 16, strength).numpy()
    for i in range(3):
        apart, order = 2**i * 2, []
        for start in range(0, 16, 2 * apart):
            for k in range(apart):
                order += [start + k, start + k + apart]
        stage = np.zeros((16, 16))
        stage[np.ix_(order, order)] = whole[16 * i : 16 * i + 16, 16 * i : 16 * i + 16]
        expected = stage @ expected
    tensors = {"lora_unet_conv_in.oft_blocks": blocks, "lora_unet_conv_in.alpha": alpha}
    found = changed(tensors, "unet", "conv_in.weight", strength)
    np.testing.assert_allclose(found.reshape(16, -1), expected, rtol=1e-4, atol=1e-5)


def test_glora_is_what_its_layers_do():
    """W(x + s·A(x)) + s·B(x), as LyCORIS' module is defined."""
    a1, a2, b1, b2 = draw(4, 2, 1, 1), draw(2, 4, 1, 1), draw(16, 2, 1, 1), draw(2, 4, 3, 3)
    tensors = dict(zip(("a1", "a2", "b1", "b2"), (a1, a2, b1, b2), strict=True))
    tensors = {f"lora_unet_conv_in.{name}.weight": value for name, value in tensors.items()}
    tensors["lora_unet_conv_in.alpha"] = 3.0
    found = changed(tensors, "unet", "conv_in.weight", 0.5)

    def conv(x, weight):
        return torch.nn.functional.conv2d(x, torch.from_numpy(np.ascontiguousarray(weight)))

    x = torch.from_numpy(draw(1, 4, 6, 6))
    inner = x + 0.5 * 1.5 * conv(conv(x, a2), a1)
    expected = conv(inner, WEIGHTS["unet"]["conv_in.weight"]) + 0.5 * 1.5 * conv(conv(x, b2), b1)
    torch.testing.assert_close(conv(x, found), expected, rtol=1e-4, atol=1e-4)


def test_glora_of_the_first_versions():
    """Their two factors have each other's name."""
    a, b = (draw(12, 2), draw(2, 12)), (draw(16, 2), draw(2, 12))
    tensors = {"a2": a[0], "a1": a[1], "b2": b[0], "b1": b[1]}
    weight = WEIGHTS["unet"][f"{TO_Q}.weight"]
    found = changed({f"{TO_Q}.{n}.weight": v for n, v in tensors.items()}, "unet", f"{TO_Q}.weight")
    expected = weight + weight @ a[0] @ a[1] + b[0] @ b[1]
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-4)


def test_ia3_scales_rows_or_columns():
    for key, share, on_input, scales in (
        (f"{TO_Q}.weight", draw(16), 0, draw(16)[:, None]),
        (f"{TO_Q}.weight", draw(12), 1, draw(12)[None]),
        ("conv_in.weight", draw(16).reshape(1, 16, 1, 1), 0, draw(16)[:, None, None, None]),
        ("conv_in.weight", draw(4).reshape(1, 4, 1, 1), 1, draw(4)[None, :, None, None]),
    ):
        name = "lora_unet_" + key.removesuffix(".weight").replace(".", "_")
        tensors = {f"{name}.weight": share, f"{name}.on_input": on_input}
        found = changed(tensors, "unet", key, 0.5)
        np.testing.assert_allclose(found, WEIGHTS["unet"][key] * (1 + 0.5 * scales), rtol=1e-5)


WHOLE = {"conv_in.lora_down.weight": (2, 4, 3, 3), "conv_in.lora_up.weight": (16, 2, 1, 1)}
# Tensors beside those of a whole LoRA, and what is said of them.
NOT_UNDERSTOOD = {
    "conv_in: its 'mystery' is none of": {"conv_in.mystery": (1,)},
    "conv_in: its 'lora_B.bias' is none of": {"conv_in.lora_B.bias": (16,)},
    "conv_in: its 'lora_B.own.bias' is none of": {"conv_in.lora_B.own.bias": (16,)},
    "lora_unet_conv_in: its 'a.b.weight'": {"lora_unet_conv_in.a.b.weight": (16,)},
    "found hada_w1_a beside|found w1_a beside down, up": {"conv_in.hada_w1_a": (16, 2)},
    "found rescale beside down, up": {"conv_in.rescale": (16, 1, 1, 1)},
    "two DoRA magnitudes": {"conv_in.magnitude": (16,), "conv_in.dora_scale": (16, 1, 1, 1)},
    "gives the down of conv_in twice": {"conv_in.lora_A.other.weight": (2, 4, 3, 3)},
    "the down of .* twice, under two names": {"unet.conv_in.lora_A.weight": (2, 4, 3, 3)},
    f"this model has no {TO_Q}.bias": {f"{TO_Q}.diff_b": (16,)},
    "changes a weight of shape \\(16, 1\\), this one's has \\(16,\\)": {
        "conv_norm_out.lora_down.weight": (1, 1), "conv_norm_out.lora_up.weight": (16, 1),
    },
    "of another model: it changes a weight of shape \\(1,\\)": {"conv_norm_out.w_norm": (1,)},
    "its oft_R needs peft's adapter_config.json": {f"{TO_Q}.oft_R.weight": (3, 6)},
    "'oft_R.scaled_oft' is none of": {
        f"{TO_Q}.oft_R.weight": (3, 6), f"{TO_Q}.oft_R.scaled_oft": (),
    },
    "rotates blocks of shape \\(2, 4, 4\\), the weight has 16": {f"{TO_Q}.oft_blocks": (2, 4, 4)},
    "it scales 3 channels": {f"{TO_Q}.weight": (3,), f"{TO_Q}.on_input": ()},
    f"holds whole weights \\({TO_Q}.weight\\)": {f"{TO_Q}.weight": (16, 12)},
    "its 'bias' is none of": {"conv_in.bias": (16,)},
    "a Control-LoRA": {"lora_controlnet": ()},
    "a T-LoRA": {"lycoris_conv_in.q_layer.weight": (2, 4)},
    "a Custom Diffusion": {"down_blocks.0.attn2.processor.to_k_custom_diffusion.weight": (4, 4)},
    "an IP-Adapter": {"ip_adapter.1.to_k_ip.weight": (4, 4)},
    "a ControlNet-LLLite": {"lllite_unet_input_blocks_1_1.down.0.weight": (4, 4)},
    "of a transformer": {"lora_unet_double_blocks_0_img_attn_qkv.lora_up.weight": (4, 4)},
    "it is of motion modules, for clips: load": {
        "down_blocks.0.motion_modules.0.to_q.lora.up.weight": (4, 4)
    },
    "a learned word: use load_textual_inversion": {"emb_params": (2, 4)},
    "an OFT of LyCORIS before 2.0": {"lora_unet_conv_in.oft_diag": (4, 4, 4)},
    "another method of peft's": {"base_model.model.conv_in.ia3_l": (16, 1)},
}  # fmt: skip


@pytest.mark.parametrize("message", NOT_UNDERSTOOD)
def test_what_is_not_understood_is_refused(message):
    ones = {key: np.ones(shape, np.float32) for key, shape in WHOLE.items()}
    assert len(read(ones).factors) == 1
    more = {key: np.full(shape, 0.5, np.float32) for key, shape in NOT_UNDERSTOOD[message].items()}
    with pytest.raises(SdjaxError, match=message):
        read(ones | more)


def test_peft_rotations_that_are_not_read():
    tensors = {f"base_model.model.{TO_Q}.oft_R.weight": draw(3, 6)}
    config = peft.OFTConfig(oft_block_size=4, **TARGET_MODULES).to_dict()
    for change, message in (
        ({"coft": True}, "constrains the rotations"),
        ({"use_cayley_neumann": None}, "must say use_cayley_neumann .* found None and 5"),
        ({"peft_type": "BOFT"}, "it is a BOFT of peft: expected LORA, LOHA, LOKR, OFT"),
    ):
        with pytest.raises(SdjaxError, match=message):
            read(tensors, {"unet": {**config, **change}})


def test_words_bundled_with_an_adapter_are_told_and_read(tmp_path):
    """OneTrainer's way to keep both in one file."""
    table = {"text_model.embeddings.token_embedding.weight": np.zeros((20, 8), np.float32)}
    params = {
        part: params_from_state({key: lazy(value) for key, value in weights.items()})
        for part, weights in (("unet", WEIGHTS["unet"]), ("text_encoder", table))
    }
    tensors = {f"{TO_Q}.lora_down.weight": draw(2, 12), f"{TO_Q}.lora_up.weight": draw(16, 2)}
    tensors |= {"bundle_emb.<my.cat>.clip_l": draw(3, 8), "bundle_emb.dog.clip_l": draw(1, 8)}
    path = tmp_path / "both.safetensors"
    save_file({key: torch.from_numpy(value) for key, value in tensors.items()}, path)
    with pytest.warns(UserWarning, match="learned words too, .*: <my.cat>, dog") as told:
        adapter = read_lora(path, params)
    assert len(told) == 1 and list(adapter.factors) == [("unet", f"{TO_Q}.weight")]
    word, vectors = read_textual_inversion(path, params, ["text_encoder"], "<my.cat>")
    assert word == "<my.cat>" and list(vectors) == ["text_encoder"]
    np.testing.assert_array_equal(vectors["text_encoder"], draw(3, 8))
    with pytest.raises(SdjaxError, match="expected one of them as token=, got None"):
        read_textual_inversion(path, params, ["text_encoder"])
    save_file({"bundle_emb.dog.clip_l": torch.ones(1, 8)}, path)
    assert read_textual_inversion(path, params, ["text_encoder"], "hund")[0] == "hund"
    for other, prefix in (("clip_l_out", "bundle_emb.dog."), ("t5xxl", "")):
        save_file({prefix + "clip_l": torch.ones(1, 8), prefix + other: torch.ones(1, 8)}, path)
        with pytest.raises(SdjaxError, match=f"has vectors that are not read: {other}"):
            read_textual_inversion(path, params, ["text_encoder"])
