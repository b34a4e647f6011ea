"""Adapters of every format against peft and diffusers, on random factors."""

import warnings

import diffusers
import jax
import numpy as np
import peft
import pytest
import torch
from safetensors.torch import save_file

import sdjax
from sdjax.weights import lora
from sdjax.weights.names import state_from_params
from sdjax.weights.original import unet_to_original
from tests.pipeline import peers

RANK = 3
TARGETS = ["to_q", "to_k", "to_v", "to_out.0", "proj_in", "conv1", "ff.net.0.proj"]
TEXT_TARGETS = ["q_proj", "k_proj", "v_proj", "out_proj", "fc1"]


# What peft multiplies a module's factors by: alpha / r, alpha / √r, or by rules for each module.
RULES = {
    "alpha": {},
    "rslora": {"use_rslora": True},
    "patterns": {
        "rank_pattern": {"to_q": 2, "q_proj": 2},
        "alpha_pattern": {"to_q": 5, r".*attn2\.to_k": 7, "encoder.layers.0.self_attn.v_proj": 4},
    },
}


@pytest.fixture(scope="module", params=["sd1", "sdxl"])
def kind(request):
    return request.param


@pytest.fixture(scope="module")
def folder(kind, tmp_path_factory):
    return peers.make(kind, tmp_path_factory.mktemp(kind))


@pytest.fixture
def model(folder):
    return sdjax.StableDiffusion.from_pretrained(folder)


class Peer:
    """A network with a random peft adapter: its factors, and its weights once merged."""

    def __init__(self, network, targets, dora=False, alpha=6, strength=1, saved=None, **rule):
        self.config = peft.LoraConfig(
            r=RANK, lora_alpha=alpha, target_modules=targets, use_dora=dora,
            init_lora_weights=False, **rule,
        )
        torch.manual_seed(1)
        wrapped = peft.get_peft_model(network, self.config)
        for name, value in wrapped.named_parameters():
            if "lora_" in name:
                value.data = 0.1 * torch.randn_like(value) + ("magnitude" in name)
        prefix = "base_model.model."
        self.factors = {
            key.removeprefix(prefix): value.detach().clone()
            for key, value in peft.get_peft_model_state_dict(wrapped).items()
        }
        self.alpha = alpha
        if saved:
            wrapped.save_pretrained(saved)
        for module in wrapped.modules():
            if isinstance(module, peft.tuners.lora.LoraLayer):
                module.scale_layer(strength)
        self.merged = wrapped.merge_and_unload().state_dict()

    def modules(self):
        """(module, down, up) of each adapted module."""
        for key, down in self.factors.items():
            if key.endswith(".lora_A.weight"):
                module = key.removesuffix(".lora_A.weight")
                yield module, down, self.factors[f"{module}.lora_B.weight"]


def state(params):
    return {key: tensor.load() for key, tensor in state_from_params(params).items()}


def assert_merged(params, expected):
    found = state(params)
    assert found.keys() == expected.keys()
    for key, value in expected.items():
        np.testing.assert_allclose(found[key], value.numpy(), rtol=2e-5, atol=2e-5, err_msg=key)


def written(tmp_path, tensors):
    path = tmp_path / "adapter.safetensors"
    save_file({key: value.contiguous() for key, value in tensors.items()}, path)
    return path


def flat(name):
    return name.replace(".", "_")


def as_peft(peer, prefix):
    tensors = {f"{prefix}.{key}": value for key, value in peer.factors.items()}
    return tensors | {
        f"{prefix}.{module}.alpha": torch.tensor(float(peer.alpha))
        for module, *_ in peer.modules()
    }


def as_scripts(peer, prefix, rename=lambda module: module):
    tensors = {}
    for module, down, up in peer.modules():
        name = prefix + flat(rename(module))
        tensors[f"{name}.lora_down.weight"], tensors[f"{name}.lora_up.weight"] = down, up
        tensors[f"{name}.alpha"] = torch.tensor(float(peer.alpha))
    return tensors


def as_sgm(module):
    return unet_to_original(f"{module}.weight", 1).removesuffix(".weight")


@pytest.mark.parametrize("style", ["peft", "scripts", "sgm"])
def test_unet_adapter_equals_peft(kind, folder, model, style, tmp_path):
    peer = Peer(peers.load(kind, folder).unet, TARGETS)
    tensors = {
        "peft": lambda: as_peft(peer, "unet"),
        "scripts": lambda: as_scripts(peer, "lora_unet_"),
        "sgm": lambda: as_scripts(peer, "lora_unet_", as_sgm),
    }[style]()
    before = model.params
    name = model.load_lora(written(tmp_path, tensors))
    assert_merged(model.params["unet"], peer.merged)
    model.set_lora_weights(**{name: 0.0})
    jax.tree.map(np.testing.assert_array_equal, model.params, before)
    model.set_lora_weights(**{name: 1.0})
    model.unload()
    jax.tree.map(np.testing.assert_array_equal, model.params, before)


def text_parts(pipeline):
    names = ("text_encoder", "text_encoder_2")
    return [part for part in names if getattr(pipeline, part, None) is not None]


@pytest.mark.parametrize(
    ("kind", "rule"), [("sd1", "rslora"), ("sd2", "patterns"), ("sdxl", "alpha")], indirect=["kind"]
)
def test_folders_that_peft_saved(kind, folder, model, rule, tmp_path):
    """With their adapter_config.json; peft's names do not say which text encoder it is."""
    pipeline, merged = peers.load(kind, folder), {}
    for part in ["unet", *text_parts(pipeline)]:
        targets = TARGETS if part == "unet" else TEXT_TARGETS
        saved = tmp_path / part
        merged[part] = Peer(getattr(pipeline, part), targets, saved=saved, **RULES[rule]).merged
        path = saved if part == "unet" else saved / "adapter_model.safetensors"
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            name = model.load_lora(path, name=None if part == "unet" else part)
        assert name == part
    for part, expected in merged.items():
        assert_merged(model.params[part], expected)


@pytest.mark.parametrize("rule", RULES)
def test_folder_that_diffusers_saved(kind, folder, model, rule, tmp_path):
    """With the configurations of all parts in the file's metadata."""
    pipeline = peers.load(kind, folder)
    rules = list(RULES.values())
    merged, options = {}, {}
    for i, part in enumerate(["unet", *text_parts(pipeline)]):
        own = rules[(list(RULES).index(rule) + i) % len(rules)]  # another one for each part
        peer = Peer(getattr(pipeline, part), TARGETS if i == 0 else TEXT_TARGETS, **own)
        merged[part] = peer.merged
        options[f"{part}_lora_layers"] = peer.factors
        options[f"{part}_lora_adapter_metadata"] = peer.config.to_dict()
    peers.CLASSES[kind].save_lora_weights(tmp_path / "style", **options)
    assert model.load_lora(tmp_path / "style") == "style"
    for part, expected in merged.items():
        assert_merged(model.params[part], expected)


def test_one_network_that_diffusers_saved(kind, folder, model, tmp_path):
    unet = diffusers.UNet2DConditionModel.from_pretrained(folder / "unet")
    torch.manual_seed(1)
    unet.add_adapter(
        peft.LoraConfig(r=2, lora_alpha=5, target_modules=["to_q"], init_lora_weights=False)
    )
    unet.save_lora_adapter(tmp_path)
    unet.fuse_lora()
    unet.unload_lora()
    model.load_lora(tmp_path)
    assert_merged(model.params["unet"], unet.state_dict())


def test_configurations_that_are_none(model, tmp_path):
    name = "base_model.model.conv_in"
    tensors = {
        f"{name}.lora_A.weight": torch.ones(1, 4, 3, 3),
        f"{name}.lora_B.weight": torch.ones(16, 1, 1, 1),
    }
    path = written(tmp_path, tensors)
    for config, message in (
        ("{", "is not JSON"),
        ("[]", "must hold a JSON object"),
        ('{"r": 1}', "no usable lora_alpha: found None"),
        ('{"r": 1, "lora_alpha": NaN}', "no usable lora_alpha: found nan"),
        ('{"r": 0, "lora_alpha": 1}', "the rank 0"),
        ('{"r": 1, "lora_alpha": 1, "alpha_pattern": {"(": 2}}', "does not map patterns"),
        ('{"r": 1, "lora_alpha": 1, "peft_type": "BOFT"}', "is a BOFT of peft"),
    ):
        (tmp_path / "adapter_config.json").write_text(config)
        with pytest.raises(sdjax.SdjaxError, match=message):
            model.load_lora(path)
        if config.startswith('{"'):
            continue
        other, metadata = {"x": torch.ones(1)}, {"lora_adapter_metadata": config}
        save_file(other, tmp_path / "b.safetensors", metadata)
        with pytest.raises(sdjax.SdjaxError, match="lora_adapter_metadata"):
            model.load_lora(tmp_path / "b.safetensors")
    (tmp_path / "adapter_config.json").unlink()
    with pytest.warns(UserWarning, match="adapter_config.json says how strong"):
        model.load_lora(path)
    with pytest.raises(sdjax.SdjaxError, match="is loaded: unload it first"):
        model.load_lora(path)
    (tmp_path / "empty").mkdir()
    with pytest.raises(sdjax.SdjaxError, match="holds no adapter: expected one of adapter_model"):
        model.load_lora(tmp_path / "empty")


def test_text_encoders(kind, folder, model, tmp_path):
    pipeline = peers.load(kind, folder)
    tensors, expected = {}, {}
    prefixes = ["lora_te1_", "lora_te2_"] if kind == "sdxl" else ["lora_te_"]
    for part, prefix in zip(text_parts(pipeline), prefixes, strict=True):
        peer = Peer(getattr(pipeline, part), TEXT_TARGETS)
        expected[part] = peer.merged
        tensors |= as_scripts(
            peer, prefix, lambda module: "text_model." + module.removeprefix("text_model.")
        )
    model.load_lora(written(tmp_path, tensors))
    for part, merged in expected.items():
        assert_merged(model.params[part], merged)


@pytest.mark.parametrize("strength", [1, 0.5])
def test_dora_equals_peft(kind, folder, model, strength, tmp_path):
    peer = Peer(peers.load(kind, folder).unet, ["to_q", "conv1"], dora=True, strength=strength)
    tensors = as_peft(peer, "unet")
    assert any("magnitude" in key for key in tensors)
    model.load_lora(written(tmp_path, tensors), weight=strength)
    assert_merged(model.params["unet"], peer.merged)


def test_dora_of_sd_scripts_equals_peft(kind, folder, model, tmp_path):
    peer = Peer(peers.load(kind, folder).unet, ["to_q", "conv1"], dora=True)
    tensors = as_scripts(peer, "lora_unet_")
    for key, value in peer.factors.items():
        module, found, _ = key.partition(".lora_magnitude_vector")
        if found:
            down = peer.factors[f"{module}.lora_A.weight"]
            shape = (-1, *(1,) * (down.ndim - 1))
            tensors[f"lora_unet_{flat(module)}.dora_scale"] = value.reshape(shape)
    model.load_lora(written(tmp_path, tensors))
    assert_merged(model.params["unet"], peer.merged)


@pytest.mark.parametrize("method", ["LoHa", "LoKr"])
def test_lycoris_files_equal_peft(kind, folder, model, method, tmp_path):
    """In a file, under the names that LyCORIS gives, of linear layers and convolutions."""
    config = getattr(peft, f"{method}Config")(
        r=1, alpha=2, target_modules=["to_q", "conv1"], init_weights=False
    )
    torch.manual_seed(1)
    wrapped = peft.get_peft_model(peers.load(kind, folder).unet, config)
    for name, value in wrapped.named_parameters():
        if "hada_" in name or "lokr_" in name:
            value.data = 0.3 * torch.randn_like(value)
    tensors = {}
    for key, value in peft.get_peft_model_state_dict(wrapped).items():
        module, _, factor = key.removeprefix("base_model.model.").rpartition(".")
        tensors[f"lora_unet_{flat(module)}.{factor}"] = value.detach().clone()
        tensors[f"lora_unet_{flat(module)}.alpha"] = torch.tensor(2.0)
    before = model.params["unet"]
    model.load_lora(written(tmp_path, tensors))
    assert_merged(model.params["unet"], wrapped.merge_and_unload().state_dict())
    changed = [
        key for key, value in state(model.params["unet"]).items()
        if not np.array_equal(value, state(before)[key])
    ]  # fmt: skip
    assert any("conv1" in key for key in changed) and any("to_q" in key for key in changed)


@pytest.mark.parametrize("style", ["processors", "linear layers"])
def test_old_diffusers(kind, folder, model, style, tmp_path):
    pipeline = peers.load(kind, folder)
    peer = Peer(pipeline.unet, ["to_q", "to_out.0"], alpha=RANK)
    text = Peer(pipeline.text_encoder, ["q_proj", "out_proj"], alpha=RANK)
    tensors = {}
    for module, down, up in peer.modules():
        head, _, which = module.removesuffix(".0").rpartition(".to_")
        name = f"{head}.processor.to_{which}_lora"
        name = "unet." + (name if style == "processors" else f"{module}.lora_linear_layer")
        tensors[f"{name}.down.weight"], tensors[f"{name}.up.weight"] = down, up
    for module, down, up in text.modules():
        head, _, which = module.removesuffix("_proj").rpartition(".")
        name = f"{head}.to_{which}_lora"
        name = name if style == "processors" else f"{module}.lora_linear_layer"
        name = "text_encoder.text_model." + name.removeprefix("text_model.")
        tensors[f"{name}.down.weight"], tensors[f"{name}.up.weight"] = down, up
    model.load_lora(written(tmp_path, tensors))
    assert_merged(model.params["unet"], peer.merged)
    assert_merged(model.params["text_encoder"], text.merged)


def test_several_adapters_add_up_and_unknown_keys_are_listed(model, tmp_path):
    key = "lora_unet_mid_block_attentions_0_proj_in"
    shape = state(model.params["unet"])["mid_block.attentions.0.proj_in.weight"].shape
    rng = np.random.RandomState(0)
    factors = [torch.from_numpy(rng.randn(*s).astype(np.float32))
               for s in ((2, shape[1]), (shape[0], 2))]
    tensors = {f"{key}.lora_down.weight": factors[0], f"{key}.lora_up.weight": factors[1]}
    tensors["lora_unet_no_such_block.lora_down.weight"] = factors[0].clone()
    base = state(model.params["unet"])["mid_block.attentions.0.proj_in.weight"]
    delta = (factors[1] @ factors[0]).numpy().reshape(shape)
    with pytest.warns(UserWarning, match="1 keys find no target.*no_such_block"):
        model.load_lora(written(tmp_path, tensors), weight=0.5, name="one")
        model.load_lora(written(tmp_path, tensors), weight=2.0, name="two")
    found = state(model.params["unet"])["mid_block.attentions.0.proj_in.weight"]
    np.testing.assert_allclose(found, base + 2.5 * delta, rtol=1e-4, atol=1e-5)
    for change in (
        lambda: model.set_lora_weights(one=9.0, three=1.0),
        lambda: model.set_lora_weights(one=float("nan")),
        lambda: model.unload("one", "three"),
        lambda: model.load_lora(tmp_path / "adapter.safetensors", weight=float("inf")),
    ):
        with pytest.raises(sdjax.SdjaxError, match="loaded are: one, two|a finite number"):
            change()
    model.set_lora_weights(two=1.0)  # the refused changes left no trace
    model.unload("one")
    found = state(model.params["unet"])["mid_block.attentions.0.proj_in.weight"]
    np.testing.assert_allclose(found, base + delta, rtol=1e-4, atol=1e-5)


def test_nothing_recompiles(model, tmp_path):
    options = {"steps": 2, "output": "latents"}
    before = model.generate("red", **options)
    weight = state(model.params["unet"])["conv_in.weight"]
    tensors = {
        "unet.conv_in.lora_A.weight": torch.randn(2, *weight.shape[1:]),
        "unet.conv_in.lora_B.weight": torch.randn(len(weight), 2, 1, 1),
    }
    compilations = []
    jax.monitoring.register_event_duration_secs_listener(
        lambda name, *_, **__: compilations.append(name) if "backend_compile" in name else None
    )
    name = model.load_lora(written(tmp_path, tensors))
    after = model.generate("red", **options)
    assert np.abs(after - before).max() > 1e-3
    model.set_lora_weights(**{name: 0.5})
    assert np.abs(model.generate("red", **options) - after).max() > 1e-3
    model.unload(name)
    np.testing.assert_array_equal(model.generate("red", **options), before)
    assert compilations == []


def test_adapter_of_another_model_is_refused(model, tmp_path):
    tensors = {"lora_unet_conv_in.lora_down.weight": torch.ones(2, 99),
               "lora_unet_conv_in.lora_up.weight": torch.ones(5, 2)}
    with pytest.raises(sdjax.SdjaxError, match="of another model"):
        model.load_lora(written(tmp_path, tensors))
    with pytest.raises(sdjax.SdjaxError, match="no tensor of the adapter fits"):
        model.load_lora(written(tmp_path, {"x": torch.ones(1)}))
    with pytest.raises(sdjax.SdjaxError, match="not whole"):
        model.load_lora(written(tmp_path, {"unet.conv_in.lora_A.weight": torch.ones(1, 1)}))


# Factors for a weight of 64 x 16 that are not, and what is said of them.
DAMAGED = {
    "of another model: it changes a weight of shape \\(16, 64\\), this one's has \\(64, 16\\)": {
        "lora_down.weight": (2, 64), "lora_up.weight": (16, 2),
    },
    "another model": {"hada_w1_a": (10**6, 1), "hada_w1_b": (1, 10**6),
                      "hada_w2_a": (64, 1), "hada_w2_b": (1, 16)},
    "of another": {"lora_down.weight": (2, 4, 2, 2), "lora_up.weight": (64, 2, 1, 1)},
    "not whole: found only k_w1, k_w2_a": {"lokr_w1": (4, 4), "lokr_w2_a": (16, 2)},
    "do not fit together: down \\(\\), up": {"lora_down.weight": (), "lora_up.weight": (64, 2)},
    "do not fit together": {"lora_down.weight": (2, 16), "lora_up.weight": (64, 3)},
    "not fit together": {"lora_down.weight": (2, 16), "lora_up.weight": (64, 2), "alpha": (2,)},
    "its dora_scale of shape \\(\\)": {
        "lora_down.weight": (2, 16), "lora_up.weight": (64, 2), "dora_scale": (),
    },
    "its dora_scale of shape \\(9, 1\\)": {
        "lora_down.weight": (2, 16), "lora_up.weight": (64, 2), "dora_scale": (9, 1),
    },
    "its magnitude of shape": {
        "lora_down.weight": (2, 16), "lora_up.weight": (64, 2), "lora_magnitude_vector": (16,),
    },
}  # fmt: skip


def test_damaged_adapters_leave_the_model_as_it_is(model, tmp_path):
    before, name = model.params, "lora_unet_time_embedding_linear_1"
    assert before["unet"]["time_embedding"]["linear_1"]["kernel"].shape == (16, 64)
    for message, shapes in DAMAGED.items():
        tensors = {f"{name}.{factor}": torch.ones(shape) for factor, shape in shapes.items()}
        with pytest.raises(sdjax.SdjaxError, match=message):
            model.load_lora(written(tmp_path, tensors))
    tensors = {f"{name}.lora_down.weight": torch.ones(2, 16)}
    for factor, value, message in (
        ("lora_up.weight", np.nan, "the up of .* not finite"),
        ("lora_up.weight", 3e38, "make time_embedding.linear_1.weight not finite in float32"),
    ):
        tensors[f"{name}.{factor}"] = torch.full((64, 2), value)
        with pytest.raises(sdjax.SdjaxError, match=message):
            model.load_lora(written(tmp_path, tensors))
    with pytest.raises(sdjax.SdjaxError, match="of another model: it changes a weight of shape"):
        norm = "unet.conv_norm_out"  # of one axis: no format adapts it so
        model.load_lora(written(tmp_path, {
            f"{norm}.lora_A.weight": torch.ones(1, 1), f"{norm}.lora_B.weight": torch.ones(16, 1),
        }))  # fmt: skip
    with pytest.raises(sdjax.SdjaxError, match="loaded are: none"):
        model.set_lora_weights(adapter=1.0)
    jax.tree.map(np.testing.assert_array_equal, model.params, before)


def random(*shape):
    return np.random.RandomState(sum(shape)).randn(*shape).astype(np.float32)


def test_locon_with_tucker_core_is_three_convolutions():
    factors = {"down": random(2, 5, 1, 1), "mid": random(3, 2, 3, 3), "up": random(4, 3, 1, 1)}
    image = torch.from_numpy(random(1, 5, 8, 8))
    expected = image
    for name in ("down", "mid", "up"):
        expected = torch.nn.functional.conv2d(expected, torch.from_numpy(factors[name]))
    delta = lora.difference({**factors, "alpha": np.float32(2)}, (4, 5, 3, 3))
    found = torch.nn.functional.conv2d(image, torch.from_numpy(delta))
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize("conv", [False, True])
@pytest.mark.parametrize("method", ["LoHa", "LoKr"])
def test_loha_and_lokr_equal_peft(method, conv):
    layer = torch.nn.Conv2d(4, 6, 3) if conv else torch.nn.Linear(8, 6)
    net = torch.nn.Sequential(layer)
    shape = tuple(layer.weight.shape)
    before = layer.weight.detach().clone()
    config = getattr(peft, f"{method}Config")(
        r=1, alpha=2, target_modules=["0"], init_weights=False
    )
    wrapped = peft.get_peft_model(net, config)
    factors = {}
    for key, value in peft.get_peft_model_state_dict(wrapped).items():
        name = key.rsplit(".", 1)[-1]
        prefix = "k_" if method == "LoKr" else ""
        factors[prefix + name.removeprefix("hada_").removeprefix("lokr_")] = value.numpy()
    merged = wrapped.merge_and_unload()[0].weight.detach()
    expected = (merged - before).numpy()
    found = lora.difference({**factors, "alpha": np.float32(2)}, shape)
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)
