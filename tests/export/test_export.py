"""Exported programs beside JAX, and the runner's pictures beside `generate`'s.

A target whose packages are not installed is passed over; docs/export.md says how they are.
"""

import functools
import importlib
import json
import subprocess
import sys

import jax
import numpy as np
import pytest

import sdjax
from sdjax.cli import main
from sdjax.diffusion.torch_noise import torch_images
from sdjax.export import folder as exports
from sdjax.export import programs, runner, runtimes, words, writers
from sdjax.export.layout import PROGRAMS
from tests.text.test_tokenizer import CAPTIONS, CLIP_CASES
from tests.weights.small import random_pipeline

STEPS = {"steps": 4, "height": 16, "width": 24}
TOLERANCE = 1e-4
# What compiles for longer than a test may take.
TARGETS = ["jax", "litert", *(
    pytest.param(name, marks=pytest.mark.full) for name in ("iree", "onnx")
)]  # fmt: skip


def installed(target):
    for package in (*writers.EXTRAS.get(target, ()), *runtimes.PACKAGES[target]):
        pytest.importorskip(package)


@pytest.fixture(scope="module")
def model():
    """Its attention to the prompt counts, as random parameters alone would not have it."""
    made = random_pipeline()

    def louder(path, leaf):
        names = jax.tree_util.keystr(path)
        return 8 * leaf if "attn2" in names and "to_q" not in names else leaf

    unet = jax.tree_util.tree_map_with_path(louder, made.params["unet"])
    made.params = {**made.params, "unet": unet}
    return made


@pytest.fixture(scope="module")
def exported(model, tmp_path_factory):
    """A function of a target and a dtype: the folder of the export, made once."""
    made = {}

    def of(target, dtype="float32"):
        installed(target)
        if (target, dtype) not in made:
            out = tmp_path_factory.mktemp(target) / "out"
            exports.export(model, out, target, dtype=dtype, **STEPS)
            made[target, dtype] = out
        return made[target, dtype]

    return of


@pytest.fixture(scope="module")
def compiled(model):
    """The three programs of JAX, compiled once: functions of their inputs."""
    made = programs.programs(model, (8, 12, 4), 2)
    return {
        name: (program, functools.partial(jax.jit(program.function), program.params))
        for name, program in made.items()
    }


@pytest.fixture(scope="module")
def references(model, compiled):
    """For each program (inputs, outputs of JAX), by name."""
    rng, made = np.random.default_rng(0), {}
    for name, (program, function) in compiled.items():
        given = {key: rng.standard_normal(one.shape, np.float32)
                 for key, one in program.inputs.items()}  # fmt: skip
        if name == "text_encoder":
            given = {"ids": model.tokenizers[0].encode("red apple")}
        if name == "unet":
            given["timestep"] = np.float32([981, 20])
        out = function(*given.values())
        made[name] = given, dict(zip(program.outputs, map(np.asarray, out), strict=True))
    return made


@pytest.mark.parametrize("target", TARGETS)
def test_programs_agree_with_jax(exported, references, target):
    made = runner.Runner(exported(target)).programs
    for name in PROGRAMS:
        given, expected = references[name]
        ours = made[name](**given)
        assert ours.keys() == expected.keys()
        for key in expected:
            assert np.abs(expected[key]).max() > 0.1
            np.testing.assert_allclose(ours[key], expected[key], atol=TOLERANCE, err_msg=name)


def noise_of(seed, shape):
    """What `generate` draws for a seed, one array a call."""
    drawn = iter(torch_images([seed], [shape] * 20))
    return lambda given: next(drawn)[0]


@pytest.mark.parametrize("sampler", ["ddim", "dpmpp_2m", "heun", "euler_a"])
def test_the_table_is_carried_out_as_here(model, compiled, sampler):
    """Without a target: the loop in NumPy over the networks in JAX."""
    planned = model.planned(
        exports.Request("red apple", **{**STEPS, "guidance_scale": 4.0, "sampler": sampler})
    )
    table = json.loads(json.dumps(exports.recipe.rows_of(planned.tables[0])))
    text, unet = (compiled[name][1] for name in ("text_encoder", "unet"))
    contexts = [text(model.tokenizers[0].encode(one))[0] for one in ("", "red apple")]
    context = np.concatenate(contexts)

    def denoise(x, t):
        (one,) = unet(np.repeat(x[None], 2, 0), np.full(2, t, np.float32), context)
        return one[0] + 4.0 * (one[1] - one[0])

    draw = noise_of(3, planned.shape)
    ours = runner.sampled(denoise, table, lambda: draw(None))
    theirs = model.generate(
        "red apple", seed=3, noise="torch", output="latents", guidance_scale=4.0, sampler=sampler,
        progress=False, **STEPS,
    )[0]  # fmt: skip
    np.testing.assert_allclose(ours, theirs, rtol=2e-5, atol=2e-5 * np.abs(theirs).max())


@pytest.mark.parametrize("target", TARGETS)
def test_the_runner_draws_what_generate_draws(model, exported, target):
    """With much guidance, which random networks take little note of."""
    run = runner.Runner(exported(target))

    def drawn(scale):
        return run("red apple", "rocket", guidance_scale=scale, noise=noise_of(3, (8, 12, 4)))

    ours = drawn(100.0)
    theirs = model.generate(
        "red apple", "rocket", seed=3, noise="torch", output="numpy", progress=False,
        guidance_scale=100.0, **STEPS,
    )[0]  # fmt: skip
    np.testing.assert_allclose(ours, theirs, atol=5e-4)
    alone = drawn(1)
    np.testing.assert_allclose(alone, drawn(1.0001), atol=1e-4)
    assert np.abs(alone - ours).max() > 5e-3


def test_int8_is_a_third_as_large_and_near(exported, references):
    small, wide = exported("litert", "int8"), exported("litert")
    made = runner.Runner(small).programs
    for name in PROGRAMS:
        given, expected = references[name]
        for key, array in made[name](**given).items():
            error = np.sqrt(np.mean((array - expected[key]) ** 2))
            assert 0 < error < 0.05 * expected[key].std(), name
    sizes = [sum(one.stat().st_size for one in path.glob("*.tflite")) for path in (small, wide)]
    assert sizes[0] < sizes[1]  # small networks are mostly their graphs


def test_predictions_are_made_as_many_at_once_as_the_program_takes():
    run = runner.Runner.__new__(runner.Runner)
    calls = []

    def unet(sample):
        calls.append(len(sample))
        return {"prediction": 2 * sample}

    run.programs, given = {"unet": unet}, np.arange(3.0)
    for batch, expected in ((1, [1, 1, 1]), (2, [2, 2])):
        run.batch = batch
        np.testing.assert_array_equal(run.predicted({"sample": given}), 2 * given)
        assert calls == expected
        calls.clear()


@pytest.mark.full
def test_one_prediction_a_call(model, tmp_path):
    out = tmp_path / "out"
    exports.export(model, out, "jax", batch=1, **STEPS)
    ours = runner.Runner(out)("red apple", noise=noise_of(3, (8, 12, 4)))
    theirs = model.generate(
        "red apple", seed=3, noise="torch", output="numpy", progress=False, **STEPS
    )[0]
    np.testing.assert_allclose(ours, theirs, atol=1e-3)


def test_ids_are_transformers():
    tokenizer = sdjax.train_tokenizer(CAPTIONS * 5, vocab_size=600, max_length=24)
    ours = words.Words(json.loads(json.dumps(exports.recipe.tokenizer_of(tokenizer))))
    texts = [
        *CAPTIONS, "", "A  RED\tCircle!!", "emoji 🎉 unseen", "it's 12 cats_and 3½ dogs", "İ ﬁ Ⅳ",
        "<|startoftext|>red<|endoftext|>", "naïve café", *(one["prompt"] for one in CLIP_CASES),
    ]  # fmt: skip
    for text in texts:
        theirs = tokenizer.clip(
            text, padding="max_length", max_length=24, truncation=True
        )["input_ids"]
        lost = len(tokenizer.clip(text)["input_ids"]) > 24
        if lost:
            with pytest.warns(UserWarning, match="only 22 tokens"):
                np.testing.assert_array_equal(ours.ids(text)[0], theirs, err_msg=text)
        else:
            np.testing.assert_array_equal(ours.ids(text)[0], theirs, err_msg=text)


def test_the_runner_needs_no_jax():
    code = (
        "import sys; sys.modules.update(dict.fromkeys(['jax', 'flax', 'transformers', 'PIL']));"
        "from sdjax.export import runner, runtimes, words, layout;"
        "print(runner.Runner)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (["--target", "jax", "--dtype", "int8"], "--dtype int8 is for --target litert"),
        (["--target", "jax", "--platform", "phone"], "must be one of cpu, gpu, tpu, got phone"),
        (["--target", "litert", "--platform", "cpu"], "must be left out, got cpu"),
    ],
)
def test_what_cannot_be_exported_is_one_line(tmp_path, capsys, arguments, line):
    assert main(["export", str(sdjax.EMOJI), str(tmp_path / "out"), *arguments]) == 2
    assert line in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("target", list(writers.EXTRAS))
def test_a_missing_compiler_is_one_line(monkeypatch, target):
    monkeypatch.setattr(importlib, "import_module", _missing)
    with pytest.raises(sdjax.SdjaxError, match=rf'pip install "sdjax\[{target}\]"'):
        writers.check(target, "float32", None)


def _missing(name):
    raise ImportError(name)


def test_other_kinds_of_models_are_refused(model):
    with pytest.raises(sdjax.SdjaxError, match="from prompts alone: this U-Net sees 4 channels"):
        programs.programs(model, (8, 8, 3), 2)


def test_another_folder_is_refused(tmp_path):
    with pytest.raises(sdjax.SdjaxError, match="no exported model"):
        runner.Runner(tmp_path)
