"""What SDXL's networks are told of a picture beside its prompt: sizes, crop and score."""

import numpy as np

from sdjax.errors import SdjaxError
from sdjax.pipeline.plans.request import Request

SCORES = 6.0, 2.5
"""Aesthetic scores of the prompt and of the negative prompt, where the refiner is given none."""

_SIZES = ("original_size", "crop", "target_size")
_SCORE = "aesthetic_score"
_TELLS = {6: _SIZES, 5: (*_SIZES[:2], _SCORE)}
SCORED = (_SCORE, f"negative_{_SCORE}")
ARGUMENTS = (*_SIZES, _SCORE, *(f"negative_{name}" for name in (*_SIZES, _SCORE)))


def time_ids(
    asked: Request, unet, encoders, size: tuple[int, int], negatives: int, branches: int
) -> np.ndarray | None:
    """float32 [branches, 6]: original height, width; crop top, left; target height, width, as SDXL
    is told them, or for its refiner [branches, 5], the score in place of the target.

    unet, encoders: configurations. size: height and width of the result. The first branches are
    the negative prompt's, `negatives` of them. None for other models. Raises SdjaxError for
    arguments that the model is not told.
    """
    known = names(unet, encoders)
    for name in ARGUMENTS:
        if getattr(asked, name) is not None and name.removeprefix("negative_") not in known:
            told = "this model is told no" if known else "models of the kind of SDXL are told"
            raise SdjaxError(f"{told} {name.replace('_', ' ')}: leave {name} out")
    if not known:
        return None
    defaults = dict(zip((*_SIZES, _SCORE), (size, (0, 0), size, SCORES[0]), strict=True))
    prompt = _given(asked, "", defaults)
    if not (_SCORE in known or any(getattr(asked, f"negative_{name}") for name in _SIZES)):
        negative = prompt
    else:
        # As in diffusers: sizes are the prompt's, but the crop is none.
        negative = _given(asked, "negative_", prompt | {"crop": (0, 0), _SCORE: SCORES[1]})
    ids = [np.hstack([told[name] for name in known]) for told in (negative, prompt)]
    return np.float32([ids[0]] * negatives + [ids[1]] * (branches - negatives))


def names(unet, encoders) -> tuple[str, ...]:
    """The arguments whose values a model of these configurations is told; none but SDXL's kind."""
    return _TELLS.get(_count(unet, encoders), ())


def _given(asked: Request, prefix: str, defaults: dict) -> dict:
    values = {name: getattr(asked, f"{prefix}{name}") for name in defaults}
    return {name: defaults[name] if value is None else value for name, value in values.items()}


def _count(unet, encoders) -> int | None:
    """How many numbers the U-Net is told, None where it takes none."""
    if unet.addition_embed_type != "text_time":
        return None
    last = encoders[-1]
    pooled = last.projection_dim if last.projected else last.hidden_size
    rest = unet.projection_class_embeddings_input_dim - pooled
    count, over = divmod(rest, unet.addition_time_embed_dim)
    if over or count not in _TELLS:
        raise SdjaxError(
            f"this U-Net's added vector has {unet.projection_class_embeddings_input_dim} numbers: "
            f"expected the text encoder's {pooled} and 6 (5 of a refiner) times "
            f"{unet.addition_time_embed_dim}"
        )
    return count
