"""Names that other programs give to samplers."""

import difflib
import re

from sdjax.errors import SdjaxError

ALIASES = {
    "pndm": "plms",
    "euler_ancestral": "euler_a",
    "dpm_2": "dpm2",
    "dpm_2_a": "dpm2_a",
    "dpm_2_ancestral": "dpm2_a",
    "dpm2_ancestral": "dpm2_a",
    "dpmpp_2s_ancestral": "dpmpp_2s_a",
    "dpmpp_s": "dpmpp_2s",
    "dpmpp": "dpmpp_2m",
    "dpm_solver": "dpmpp_2m",
    "sde_dpmpp": "dpmpp_2m_sde",
    "uni_pc": "unipc",
}
VARIANTS = {
    # Stable Diffusion's; diffusers' class of it starts with Runge–Kutta steps unless told not to.
    "plms": ("plms", {"runge_kutta": False}),
    "uni_pc_bh2": ("unipc", {"variant": "bh2"}),
    "unipc_bh2": ("unipc", {"variant": "bh2"}),
    "unipc_bh1": ("unipc", {"variant": "bh1"}),
    "uni_pc_bh1": ("unipc", {"variant": "bh1"}),
    "dpmpp_2m_sde_heun": ("dpmpp_2m_sde", {"solver": "heun"}),
}
# diffusers' classes.
CLASSES = {
    "DDPMScheduler": "ddpm",
    "DDPMParallelScheduler": "ddpm",
    "DDIMScheduler": "ddim",
    "DDIMParallelScheduler": "ddim",
    "DDIMInverseScheduler": "ddim_inverse",
    "PNDMScheduler": "plms",
    "EulerDiscreteScheduler": "euler",
    "EulerAncestralDiscreteScheduler": "euler_a",
    "HeunDiscreteScheduler": "heun",
    "LMSDiscreteScheduler": "lms",
    "KDPM2DiscreteScheduler": "dpm2",
    "KDPM2AncestralDiscreteScheduler": "dpm2_a",
    "DPMSolverSDEScheduler": "dpmpp_sde",
    "DPMSolverMultistepScheduler": "dpmpp_2m",
    "DPMSolverMultistepInverseScheduler": "dpmpp_2m_inverse",
    "DPMSolverSinglestepScheduler": "dpmpp_2s",
    "UniPCMultistepScheduler": "unipc",
    "DEISMultistepScheduler": "deis",
    "LCMScheduler": "lcm",
    "TCDScheduler": "tcd",
    "UnCLIPScheduler": "ddpm",
    "IPNDMScheduler": "crash_ipndm",
    "EDMEulerScheduler": "edm_euler",
    "EDMDPMSolverMultistepScheduler": "edm_dpmpp_2m",
    "CMStochasticIterativeScheduler": "consistency",
}
# Names of schedules that may follow a sampler's name; the longer of two with one end first.
SCHEDULES = {
    "polyexponential": {"sigmas": "polyexponential"},
    "exponential": {"sigmas": "exponential"},
    "karras": {"sigmas": "karras"},
    "beta": {"sigmas": "beta"},
    "sgm_uniform": {"sigmas": "sgm_uniform"},
    "simple": {"sigmas": "simple"},
    "kl_optimal": {"sigmas": "kl_optimal"},
    "align_your_steps": {"sigmas": "ays_sd"},
    "lu": {"sigmas": "lu"},
    "normal": {"spacing": "linspace"},
    "ddim_uniform": {"spacing": "leading", "steps_offset": 1},
    "automatic": {},
}
# diffusers' classes in lower case, also without the word "Scheduler".
_PLAIN_CLASSES = {
    spelling: sampler
    for name, sampler in CLASSES.items()
    for spelling in (name.lower(), name.lower().removesuffix("scheduler"))
}


def canonical_name(name, known):
    """(name, options) for any spelling: "DPM++ 2M SDE Karras" is dpmpp_2m_sde with Karras sigmas.

    Args:
      name: a sampler's name, in any case, with spaces, hyphens or underscores; one of A1111,
        ComfyUI or k-diffusion ("sample_dpmpp_2m"); or a diffusers class.
      known: the names that exist.

    Raises:
      SdjaxError: the name is unknown; the message lists the nearest ones.
    """
    if name in CLASSES:
        return CLASSES[name], {}
    plain = re.sub(r"[\s\-_()]+", "_", str(name).strip().lower()).strip("_")
    plain = re.sub(r"dpm(_?solver)?\+\+", "dpmpp", plain)
    plain, options = re.sub("^(sample|k)_", "", plain), {}
    for suffix, schedule in SCHEDULES.items():
        if plain.endswith(f"_{suffix}"):
            plain, options = plain.removesuffix(f"_{suffix}"), dict(schedule)
            break
    plain = plain.removesuffix("_gpu")
    if plain in VARIANTS:
        plain, more = VARIANTS[plain]
        options |= more
    plain = ALIASES.get(plain, plain)
    plain = plain if plain in known else _PLAIN_CLASSES.get(plain, plain)
    if plain in known:
        return plain, options
    near = difflib.get_close_matches(plain, [*known, *ALIASES, *VARIANTS, *CLASSES], 4, 0.4)
    hint = f"the nearest are {', '.join(near)}" if near else f"there are {', '.join(known)}"
    raise SdjaxError(f"unknown sampler {name!r}: {hint}")
