"""The arguments of `generate`: each is checked, and a wrong one named, before anything is run."""

import inspect
from fractions import Fraction

import jax.numpy as jnp
import numpy as np
import pytest

import sdjax
from sdjax.diffusion.samplers import option_names
from sdjax.pipeline.plans.request import ARGUMENTS, Request
from sdjax.words import WORDS


def refusal(**arguments):
    """The line about these arguments."""
    known = {name: arguments.pop(name) for name in list(arguments) if name in ARGUMENTS}
    with pytest.raises(sdjax.SdjaxError) as refused:
        Request(**{"prompt": "a", **known}, options=arguments)
    assert "\n" not in str(refused.value)
    return str(refused.value)


def test_every_argument_of_generate_is_checked():
    parameters = inspect.signature(sdjax.StableDiffusion.generate).parameters
    assert set(parameters) - {"self", "sampler_options"} == ARGUMENTS
    defaults = {n: p.default for n, p in parameters.items() if n in ARGUMENTS and n != "prompt"}
    asked = Request("a")
    assert {name: getattr(asked, name) for name in defaults} == defaults


WRONG = [None, "7", float("nan"), float("inf"), 2.5, [1.0], {}, 1j, True, b"a", object, np.ones(2)]
NUMBERS = {
    "steps": (None,), "count": (), "height": (None,), "width": (None,), "clip_skip": (),
    "batch_size": (None,), "guidance_scale": (None, 2.5), "guidance_rescale": (),
    "seed": (None,),
}  # fmt: skip


@pytest.mark.parametrize("name", NUMBERS)
def test_numbers_are_numbers(name):
    for value in WRONG:
        taken = np.ndim(value) == 0 and any(value is v or value == v for v in NUMBERS[name])
        several = name == "guidance_scale" and np.ndim(value) == 1
        if not taken and not several and not (name == "seed" and isinstance(value, list)):
            assert refusal(**{name: value}).startswith((f"{name} must ", "a seed must lie"))
    for one in (1, 1.0, np.int64(1), np.float32(1), np.array(1), jnp.float32(1), Fraction(1)):
        value = getattr(Request("a", **{name: one}), name)
        value = value[0] if isinstance(value, list) else value
        assert value == 1 and type(value) in (int, float)


@pytest.mark.parametrize(
    ("name", "wrong"),
    [
        ("prompt", [None, 7, b"a", {"a": 1}, ["a", None], [["a"]], [], (), np.zeros(0)]),
        ("negative_prompt", [7, b"a", [None], []]),
        ("sampler", [["ddim"], 3, {}, "eulr", ""]),
        ("noise", ["pink", ["torch"], 1, True]),
        ("output", ["jpeg", None, 1, ["pil"]]),
        ("progress", [None, "yes", 1]),
        ("latents", ["noise", [[1], [2, 3]], np.full((1, 8, 8, 4), np.nan), [None]]),
        ("seed", [[1, 2], [1.5], ["1"], [], "0", [[1]], -1, 2**64, 1.5, float("nan")]),
    ],
)
def test_other_kinds(name, wrong):
    for value in wrong:
        line = refusal(**{name: value})
        assert line.startswith((f"{name} ", "a seed must lie", "unknown sampler"))


@pytest.mark.parametrize(
    ("name", "value"),
    [("guidance_rescale", 5), ("guidance_rescale", -0.1), ("count", 0), ("steps", -3),
     ("batch_size", 0), ("clip_skip", -1)],
)  # fmt: skip
def test_ranges(name, value):
    assert refusal(**{name: value}).startswith(f"{name} must ")


def test_a_long_value_is_cut_in_the_line():
    assert len(refusal(steps=list(range(1000)))) < 200


@pytest.mark.parametrize(
    ("word", "ours"),
    [
        ("num_inference_steps", "it is steps here"),
        ("cfg_scale", "it is guidance_scale here"),
        ("CFG scale", "it is guidance_scale here"),
        ("sampler_name", "it is sampler here"),
        ("scheduler", "it is sampler here"),
        ("n_iter", "it is count here"),
        ("num_images_per_prompt", "it is count here"),
        ("negative_prompts", "it is negative_prompt here"),
        ("guidance", "it is guidance_scale here"),
        ("generator", "it is seed here"),
        ("use_karras_sigmas", 'it is sigmas="karras" here'),
        ("heigth", "did you mean height?"),
        ("stpes", "did you mean steps?"),
        ("guidance_scal", "did you mean guidance_scale?"),
        ("etta", "did you mean eta?"),
        ("spacings", "did you mean spacing?"),
        ("init_image", "it is image here"),
        ("denoising_strength", "it is strength here"),
        ("denoising_end", "it is handoff here"),
        ("xyzzy", "there are aesthetic_score, batch_size, clip_skip"),
    ],
)
def test_a_foreign_or_misspelt_name_is_told_by_ours(word, ours):
    line = refusal(**{word: 1})
    assert line.startswith(f"generate has no argument {word!r}: ") and ours in line


def test_every_word_leads_to_an_argument_or_to_what_is_not_there():
    known = ARGUMENTS | set(option_names())
    absent = {"refiner"}
    for word, ours in WORDS.items():
        assert ours.split("=")[0].split(",")[0] in known | absent, word
        assert word not in ARGUMENTS


@pytest.mark.parametrize(
    ("sampler", "option", "value", "message"),
    [
        ("euler", "eta", 0.5, "sampler euler has no option 'eta': it has "),
        ("euler_a", "churn", 0.5, "sampler euler_a has no option 'churn'"),
        ("ddim", "eta", "0.5", "eta must be a finite number, got '0.5'"),
        ("ddim", "eta", float("nan"), "eta must be a finite number, got nan"),
        ("ddim", "eta", float("inf"), "eta must be a finite number, got inf"),
        ("ddim", "eta", None, "eta must be a finite number, got None"),
        ("ddim", "eta", [1.0], "eta must be a finite number"),
        ("heun", "noisiest", "164", "noisiest must be a number above 0, got '164'"),
        ("ddim", "spacing", 3, "spacing must be text, got 3"),
        ("dpmpp_2m", "order", 2.5, "order must be a whole number, got 2.5"),
        ("dpmpp_2m", "order", "2", "order must be a whole number, got '2'"),
        ("dpmpp_2m", "lower_order_final", "no", "lower_order_final must be True or False"),
        ("dpmpp_2m", "sigmas", 2.5, "sigmas must be a list of numbers, or a name, got 2.5"),
        ("dpmpp_2m", "sigmas", [9.0, "x"], "sigmas must be a list of numbers, or a name"),
        ("dpmpp_2m", "timesteps", [900, float("nan")], "timesteps must be a list of numbers"),
        (None, "clip", "1", "clip must be a finite number, got '1'"),
        (None, "threshold", 0.9, "threshold must be a quantile and the largest bound, got 0.9"),
        (None, "prediction_type", "noise", "noise"),
    ],
)
def test_options_of_a_sampler_are_its_own(sampler, option, value, message):
    assert message in refusal(sampler=sampler, **{option: value})


def test_options_of_a_sampler_that_are_taken():
    # Of its twin for networks of EDM.
    assert Request("a", sampler="heun", options={"sigma_data": 0.5})
    schedule = sdjax.scaled_linear_schedule()
    for order in (2.0, np.int32(2), np.float64(2)):
        table = sdjax.sampler("dpmpp_2m", schedule, 4, order=order)
        assert table.evaluations == 4
    assert Request("a", sampler="euler", options={"churn_max": float("inf"), "final": 0.1})


def test_a_random_seed_is_drawn_anew_and_told():
    drawn = [Request("a", seed=None, count=3).seeds for _ in range(3)]
    assert len({int(seeds[0]) for seeds in drawn}) == 3
    for seeds in drawn:
        assert seeds[0] < 2**32 and list(np.diff(seeds)) == [1, 1]
    assert list(Request(["a", "b"], seed=[3.0, np.int64(7)]).seeds) == [3, 7]
    with pytest.raises(sdjax.SdjaxError, match="for the last image"):
        Request("a", seed=2**64 - 1, count=2)
