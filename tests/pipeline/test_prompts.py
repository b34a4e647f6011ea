"""The grammar of prompts in pictures: weights, long prompts, schedules, AND, learned words."""

import jax
import numpy as np
import pytest
import torch

import sdjax
from sdjax.pipeline import run
from sdjax.pipeline.compiled import programs
from sdjax.pipeline.plans import prompts
from sdjax.pipeline.plans.request import Request
from tests.pipeline import peers
from tests.pipeline.peers import LENGTH, assert_close

OPTIONS = {"steps": 4, "guidance_scale": 5.0, "output": "latents", "progress": False}


@pytest.fixture(scope="module", params=["sd1", "sdxl"])
def kind(request):
    return request.param


def _last_norm(encoder):
    return getattr(encoder, "text_model", encoder).final_layer_norm


@pytest.fixture(scope="module")
def finished():
    """A new LayerNorm gives states whose mean is 0, which cannot be restored."""

    def with_a_mean(kind, folder):
        pipeline, generator = peers.load(kind, folder), torch.Generator().manual_seed(0)
        torch.nn.init.normal_(_last_norm(pipeline.text_encoder).bias, generator=generator)
        pipeline.save_pretrained(folder)

    return with_a_mean


def embedded(model, *texts):
    """Embeddings of texts, the same for all encoders."""
    said = np.empty(len(texts), object)
    for i, text in enumerate(texts):
        said[i] = (text,) * len(model.tokenizers)
    return run.embedded(model, said, "a1111", 0)


def read(texts, negative, evaluations):
    """What a request says, at a number of evaluations of each image."""
    asked = Request(texts, negative)
    said = [prompts.parts(text, "a1111") for text in asked.prompt]
    return prompts.read(asked, [said], 1, evaluations, 1)


def states(pipeline, text):
    """What PyTorch's encoders give for one chunk, [L, D] of each, in float64."""
    made = []
    for name in ("", "_2"):
        encoder = getattr(pipeline, f"text_encoder{name}", None)
        if encoder is None:
            break
        ids = getattr(pipeline, f"tokenizer{name}")(
            text, padding="max_length", max_length=LENGTH, return_tensors="pt"
        ).input_ids
        with torch.no_grad():
            output = encoder(ids, output_hidden_states=True)
        one = not hasattr(pipeline, "text_encoder_2")
        state = output.last_hidden_state if one else output.hidden_states[-2]
        made.append(state[0].double().numpy())
    return made


def test_the_context_is_that_of_the_formula(kind, folders):
    """A weighted word, and a second chunk: A1111's product, each chunk's mean restored."""
    model = sdjax.StableDiffusion.from_pretrained(folders(kind))
    pipeline = peers.load(kind, folders(kind))
    text = "a (large:1.5) red circle BREAK a blue [square]"
    made = embedded(model, text, "a circle")
    assert made.context.shape[:2] == (2, 2 * LENGTH)

    def chunk(plain, words, weight):
        whole = []
        for z, tokenizer in zip(states(pipeline, plain), model.tokenizers, strict=False):
            ids, wanted = (list(tokenizer.encode(one)[0]) for one in (plain, words))
            length = wanted.index(tokenizer.vocabulary["<|endoftext|>"]) - 1
            wanted = wanted[1 : 1 + length]
            first = next(i for i in range(LENGTH) if ids[i : i + length] == wanted)
            weights = np.ones((LENGTH, 1))
            weights[first : first + length] = weight
            scaled = weights * z
            whole.append(scaled * z.mean() / scaled.mean())
        return np.concatenate(whole, axis=-1)

    expected = np.concatenate([
        chunk("a large red circle", "large", 1.5), chunk("a blue square", "square", 1 / 1.1)
    ])  # fmt: skip
    np.testing.assert_allclose(made.context[0], expected, atol=2e-5)
    alone = np.concatenate(states(pipeline, "a circle"), axis=-1)
    np.testing.assert_allclose(made.context[1], np.tile(alone, (2, 1)), atol=2e-5)


def test_plain_prompts_are_those_of_diffusers_to_the_last_bit(kind, folders):
    """All ways of weighting, and none at all: the same picture, that of diffusers."""
    model = sdjax.StableDiffusion.from_pretrained(folders(kind))
    options = {**OPTIONS, "output": "numpy", "steps": 20, "seed": 7}
    ways = ("comfy", "compel", None) if kind == "sd1" else (None,)
    made = {
        way: model.generate(peers.PROMPTS, ["", "red"], weighting=way, **options)
        for way in ("a1111", *ways)
    }
    for way in ways:
        np.testing.assert_array_equal(made["a1111"], made[way])
    generators = [torch.Generator().manual_seed(seed) for seed in (7, 8)]
    theirs = peers.images(
        peers.load(kind, folders(kind)), peers.PROMPTS, negative_prompt=["", "red"],
        generator=generators,
    )  # fmt: skip
    assert_close(made["a1111"], theirs)


def test_long_and_weighted_pictures_are_those_of_their_embeddings(model, folders):
    """diffusers given the same embeddings draws the same picture."""
    text, negative = "a (large:1.5) red circle BREAK a blue [square]", "(red)"
    given = embedded(model, text, negative).context
    theirs = peers.images(
        peers.load("sd1", folders("sd1")), None, num_inference_steps=6,
        prompt_embeds=torch.from_numpy(given[:1]),
        negative_prompt_embeds=torch.from_numpy(given[1:]),
        generator=torch.Generator().manual_seed(3),
    )  # fmt: skip
    options = {"steps": 6, "guidance_scale": 5.0, "seed": 3, "output": "numpy"}
    ours = model.generate(text, negative, noise="torch", **options)
    assert_close(ours, theirs)
    assert np.abs(ours - model.generate(text, negative, weighting=None, **options)).max() > 1e-3


def test_ways_of_weighting_differ(model):
    text = "((a red:0.6) circle)"
    made = [model.generate(text, weighting=way, **OPTIONS) for way in ("a1111", "comfy", "compel")]
    for one, other in ((0, 1), (0, 2), (1, 2)):
        assert np.abs(made[one] - made[other]).max() > 1e-4


def test_schedules_reach_their_evaluations(model):
    """`[a:b:2]` is a for two evaluations, then b: the table in two parts, each with its prompt."""
    made = model.generate("[a red:a blue:2] circle", "[large:a:0.5]", **OPTIONS)
    first = {"a red circle": 0, "a blue circle": 0}
    for text in first:
        first[text] = model.generate(text, "large", **OPTIONS)
        assert np.abs(first[text] - made).max() > 1e-4
    asked = {**OPTIONS, "steps": 4}
    texts = read("[a red:a blue:2] circle", "[large:a:0.5]", [4])
    assert texts.texts[0].tolist() == [
        [("large",), ("a",)], [("a red circle",), ("a blue circle",)]
    ]  # fmt: skip
    assert texts.which.tolist() == [[[0, 0, 1, 1], [0, 0, 1, 1]]]
    # The text of a constant schedule is the text.
    constant = model.generate("[a red:a blue:0] circle", "large", **asked)
    np.testing.assert_allclose(constant, first["a blue circle"], atol=1e-5)
    turns = model.generate("[a red|a blue] circle", "large", **asked)
    assert all(np.abs(turns - one).max() > 1e-4 for one in first.values())


def test_and_adds_predictions():
    """u + scale·Σ wₖ·(cₖ − u), by a network that knows its texts."""
    texts = read(["a cat AND a dog:0.5", "a hat:2"], "bad AND worse:3", [3, 4])
    assert [[one[0] for one in row] for row in texts.texts[..., 0]] == [
        ["bad AND worse:3", "a cat", " a dog"], ["bad AND worse:3", "a hat", "a hat"]
    ]  # fmt: skip
    np.testing.assert_array_equal(texts.shares, [[1, 0.5], [2, 0]])
    u, c, d = np.float32(np.random.RandomState(0).randn(3, 1, 4, 4, 2))
    weights = np.float32(3 * texts.shares[:1])[..., None, None, None]
    made = programs._combined(np.stack([u, c, d], 1), weights, 0.0)
    np.testing.assert_allclose(made, u + 3 * (c - u) + 1.5 * (d - u), atol=1e-5)


def test_and_in_pictures(model):
    """What it must equal: one prompt twice, weights at no guidance, each image alone."""
    plain = model.generate("a red circle", "large", **OPTIONS)
    twice = model.generate("a red circle:0.25 AND a red circle:0.75", "large", **OPTIONS)
    np.testing.assert_allclose(twice, plain, atol=1e-4)
    guided = {**OPTIONS, "guidance_scale": 1.0}
    weighed = model.generate("a red circle:5", "large", **guided)
    np.testing.assert_allclose(weighed, plain, atol=1e-4)
    several = ["a red circle", "a circle AND a blue square:0.5 AND large:-1", "[red:blue:2]"]
    together = model.generate(several, "large", seed=4, **OPTIONS)
    for i, prompt in enumerate(several):
        alone = model.generate(prompt, "large", seed=4 + i, **OPTIONS)
        np.testing.assert_allclose(together[i], alone[0], atol=1e-4)


def test_what_compiles(model):
    """Other weights and times: nothing. Another number of texts: the sampler alone."""
    options = {**OPTIONS, "height": 8, "width": 8}
    for text in ("a red (circle:1.2)", "a [red:blue:2] circle", "a circle AND a square"):
        model.generate(text, **options)
    compilations = []
    jax.monitoring.register_event_duration_secs_listener(
        lambda name, *_, **__: compilations.append(name) if "backend_compile" in name else None
    )
    for text in ("((a) [red]) (circle:0.3)", "(circle", "a [large::1]", "red:0.5 AND (blue:2):2"):
        model.generate(text, **options)
    assert compilations == []


def test_learned_words_weigh_and_brackets_are_read_as_the_web_ui_reads_them(folders):
    model = sdjax.StableDiffusion.from_pretrained(folders("sd1"))
    vectors = torch.randn(3, 24, generator=torch.Generator().manual_seed(0))
    path = folders("sd1") / "word.pt"
    torch.save({"<toy>": vectors}, path)
    model.load_textual_inversion(path)
    one, other, literal, plain, scaled, unclosed = embedded(
        model, "a (<toy>:1.4)", "a (<toy>:1.4", "a \\(<toy>", "a <toy>", "a (<toy>)", "a (<toy>"
    ).context
    weights = np.ones((LENGTH, 1))
    weights[2:5] = 1.4
    expected = weights * plain
    np.testing.assert_allclose(one, expected * plain.mean() / expected.mean(), rtol=1e-4)
    # A bracket that is not closed weighs to the end, and without its pair a number is text.
    assert not np.allclose(other, scaled, atol=1e-3) and not np.allclose(literal, plain, atol=1e-3)
    np.testing.assert_allclose(unclosed, scaled, atol=1e-6)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"prompt": "a (red:1.2.3) circle"}, "is no number"),
        ({"prompt": "red", "negative_prompt": "(a:1..2)"}, "is no number"),
        ({"prompt": "red", "weighting": "invoke"}, "must be a1111, comfy, compel or None"),
    ],
)
def test_what_cannot_be_read_is_refused(model, arguments, message):
    with pytest.raises(sdjax.SdjaxError, match=message):
        model.generate(**arguments)


def test_what_is_cut_is_told_and_long_prompts_are_not_cut(model, recwarn):
    text = "red circle " * LENGTH
    model.generate(text, **OPTIONS)
    assert not [one for one in recwarn if "cut off" in str(one.message)]
    with pytest.warns(UserWarning, match="tokens of a prompt are read; cut off"):
        model.generate(text, weighting=None, **OPTIONS)
