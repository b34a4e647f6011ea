"""What the entries of diffusers' scheduler configurations are as options of `sampler`.

Each reader takes `get(name, default)` and returns options.
"""

import numbers

from sdjax.errors import SdjaxError


def getter(config, defaults):
    """get(name, default): of the configuration, else of the class, else the default.

    Raises SdjaxError for what is no number where the default is one, or neither text nor number
    where the default is text.
    """

    def get(name, default=None):
        value, default = config.get(name), defaults.get(name, default)
        if value is None:
            return default
        number = isinstance(value, numbers.Real)
        if isinstance(default, numbers.Real) and not number:
            raise SdjaxError(f"scheduler configuration: {name} must be a number, got {value!r}")
        if isinstance(default, str) and not (number or isinstance(value, str)):
            raise SdjaxError(f"scheduler configuration: {name} must be text, got {value!r}")
        return value

    return get


def _one_of(get, name, choices):
    """The entry, which must be one of `choices`; the first of them is the default."""
    value = get(name, choices[0])
    if value not in choices:
        raise SdjaxError(
            f"scheduler configuration: unknown {name} {value!r}: expected {' or '.join(choices)}"
        )
    return value


def spacing(get):
    return {
        "spacing": get("timestep_spacing", "linspace"),
        "steps_offset": get("steps_offset", 0),
    }


def sigmas(get):
    flags = {
        "use_karras_sigmas": "karras",
        "use_exponential_sigmas": "exponential",
        "use_beta_sigmas": "beta",
        "use_lu_lambdas": "lu",
    }
    asked = [name for flag, name in flags.items() if get(flag)]
    if len(asked) > 1:
        raise SdjaxError(
            f"scheduler configuration: one σ schedule at most, got {' and '.join(asked)}"
        )
    return {"sigmas": asked[0]} if asked else {}


def ends(get):
    return {"sigma_min": get("sigma_min"), "sigma_max": get("sigma_max")}


def last_sigma(get):
    return {"final": get("final_sigmas_type", "zero")}


def last_alpha(get):
    return {"final": "zero" if get("set_alpha_to_one", True) else "sigma_min"}


def bounds(get):
    if get("thresholding"):
        return {
            "threshold": (get("dynamic_thresholding_ratio", 0.995), get("sample_max_value", 1.0))
        }
    return {"clip": get("clip_sample_range", 1.0)} if get("clip_sample") else {}


def variance(get):
    kind = get("variance_type", "fixed_small").removesuffix("_log")
    if kind == "learned":
        raise SdjaxError(
            "scheduler configuration: variance_type 'learned' is not supported, "
            "expected fixed_small, fixed_large or learned_range"
        )
    return {"variance": kind}


def unclip(get):
    return {"spacing": "linspace", "schedule_betas": True}


def runge_kutta(get):
    return {"runge_kutta": not get("skip_prk_steps", False), "trial_counts": True}


def full_order(get):
    return {"warm_up": False}


def euler(get):
    told = _one_of(get, "timestep_type", ("discrete", "continuous"))
    interpolated = _one_of(get, "interpolation_type", ("linear", "log_linear"))
    return {
        **ends(get),
        "continuous": told == "continuous" and get("prediction_type") == "v_prediction",
        "log_linear": interpolated == "log_linear",
    }


def order(get):
    return {"order": get("solver_order", 2)}


def solver(get):
    kind = get("solver_type", "midpoint")
    return {"solver": "midpoint" if kind in ("logrho", "bh1", "bh2") else kind}


def algorithm(get):
    names = {
        "dpmsolver": "dpm",
        "dpmsolver++": "dpmpp",
        "sde-dpmsolver": "sde_dpm",
        "sde-dpmsolver++": "sde_dpmpp",
        "deis": "dpmpp",
    }
    kind = get("algorithm_type", "dpmsolver++")
    if kind not in names:
        raise SdjaxError(
            f"unknown algorithm_type {kind!r}: expected one of {', '.join(names)}"
        )
    return {"algorithm": names[kind], "published": False}


def last_orders(get):
    return {"lower_order_final": get("lower_order_final", True)}


def euler_at_final(get):
    return {"euler_at_final": get("euler_at_final", False)}


def float32_weights(get):
    return {"float32_weights": True}


def lambda_min(get):
    return {"lambda_min": float(get("lambda_min_clipped", "-inf"))}


def rounding(get):
    return {"round_karras": get("beta_schedule", "linear") != "squaredcos_cap_v2"}


def unipc(get):
    kind, predict_x_0 = get("solver_type", "bh2"), get("predict_x0", True)
    # A σ schedule ends with its own last level, and only the data form bounds x_0.
    own_end = sigmas(get) and get("final_sigmas_type", "zero") == "sigma_min"
    return {
        **({"final": "last"} if own_end else {}),
        **({} if predict_x_0 else {"threshold": None}),
        "variant": "bh2" if kind in ("midpoint", "heun", "logrho") else kind,
        "predict_x_0": predict_x_0,
        "without_corrector": tuple(get("disable_corrector", ())),
    }


def distilled(get):
    return {"original_steps": get("original_inference_steps", 50)}


def scaling(get):
    return {"timestep_scaling": get("timestep_scaling", 10.0)}


def edm(get):
    return {
        "sigma_min": get("sigma_min", 0.002),
        "sigma_max": get("sigma_max", 80.0),
        "sigma_data": get("sigma_data", 0.5),
        "rho": get("rho", 7.0),
        "sigmas": get("sigma_schedule", "karras"),
    }


def float32_ramp(get):
    return {"float32_ramp": True}


def consistency(get):
    return {
        "scales": get("num_train_timesteps", 40),
        "sigma_min": get("sigma_min", 0.002),
        "sigma_max": get("sigma_max", 80.0),
        "sigma_data": get("sigma_data", 0.5),
        "rho": get("rho", 7.0),
        "noise": get("s_noise", 1.0),
        **({"clip": 1.0} if get("clip_denoised", True) else {}),
    }
