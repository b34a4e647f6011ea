"""The options of `sdjax sample` for pictures that steer: --control and --reference."""

from pathlib import Path
from typing import NamedTuple

from sdjax.errors import SdjaxError


class Shown(NamedTuple):
    """A network and a picture for it, as an option names them."""

    network: str
    picture: Path
    scale: float
    reference: bool


def shown(
    control: tuple[str, ...], reference: tuple[str, ...], image_encoder: Path | None
) -> list[Shown]:
    """What the options name; SdjaxError where they do not fit, before anything is read."""
    if image_encoder is not None and not reference:
        raise SdjaxError("--image-encoder is for --reference: give that too")
    return [_parts("--control", one) for one in control] + [
        _parts("--reference", one) for one in reference
    ]


def loaded(several: list[Shown], image_encoder: Path | None, networks: dict, **held) -> tuple:
    """Values for `controls`.

    networks: those that were read before, which this adds to. held: their dtype and `offload`.
    """
    import sdjax
    from sdjax.pipeline.steering.controls import read_control

    for one in several:
        key = one.network, one.reference
        if key not in networks and one.reference:
            networks[key] = sdjax.IPAdapter.from_pretrained(
                one.network, image_encoder=image_encoder, **held
            )
        elif key not in networks:
            networks[key] = read_control(one.network, **held)
    return tuple(networks[one.network, one.reference](one.picture, one.scale) for one in several)


def _parts(option: str, value: str) -> Shown:
    """Those of NETWORK:PICTURE[:SCALE]; SdjaxError for anything else."""
    network, _, rest = value.partition(":")
    picture, _, scale = rest.partition(":")
    try:
        given = float(scale or 1)
    except ValueError:
        given = None
    if not network or not picture or given is None:
        name = "FOLDER" if option == "--control" else "FILE"
        raise SdjaxError(f"{option} must be {name}:PICTURE or {name}:PICTURE:SCALE, got {value}")
    if not Path(picture).is_file():
        raise SdjaxError(f"no such picture: {picture}")
    return Shown(network, Path(picture), given, option == "--reference")
