"""Clips: what a request of several frames may ask for, and how the networks see them."""

import numpy as np

from sdjax.errors import SdjaxError
from sdjax.models.motion import MotionConfig, check_frames
from sdjax.pipeline.given import conditions, first_frame
from sdjax.pipeline.given.tiling import Tiling
from sdjax.windows import Windows, cover

# Arguments that a clip does not take, with what they hold where they are not given.
_NOT_TAKEN = {
    "mask": None, "extend": None, "depth": None, "hires": None, "refiner": None,
    "preview": None, "safety_checker": None,
}  # fmt: skip


def check(asked, kind: str | None, motion: MotionConfig | None) -> None:
    """SdjaxError where a model makes no such clip.

    kind: what the U-Net's other input channels are for. motion: its motion modules.
    """
    moves = kind == conditions.MOVE
    if motion is None and not moves:
        raise SdjaxError("frames is for a model with motion modules: load them with load_motion")
    if kind is not None and not moves:
        raise SdjaxError("this model takes a picture, and makes no clips: leave frames out")
    for name, nothing in _NOT_TAKEN.items():
        if getattr(asked, name) is not nothing:
            instead = name if moves else f"{name} or frames"
            raise SdjaxError(f"a clip takes no {name} yet: leave {instead} out")
    if moves:
        first_frame.check(asked)
        return
    if asked.frame_windows is None:
        check_frames(motion, asked.frames)
    else:
        check_frames(motion, min(asked.frames, asked.frame_windows[0]))


def seen(asked, tiling: Tiling, shape: tuple[int, int, int]) -> Tiling:
    """The tiling of a clip: windows over its frames, and over its pictures where it has those.

    shape: of a frame's latents.
    """
    frames = asked.frames
    along = Windows(frames, frames, (0,))
    if asked.frame_windows is not None:
        along = cover(frames, *asked.frame_windows)
    if len(along.starts) == 1 and not tiling.windows:
        return tiling
    sides = tiling.windows or tuple(Windows(side, side, (0,)) for side in shape[:2])
    return tiling._replace(windows=(along, *sides))


def chosen(name: str, given: int, frames: int, total: int) -> np.ndarray:
    """Which of `given` pictures each frame of each clip takes, int[total, frames]."""
    if given not in (1, frames):
        raise SdjaxError(
            f"{name}: a clip takes one for all frames or one a frame, {frames}, got {given}"
        )
    return np.tile(np.arange(frames) % given, (total, 1))
