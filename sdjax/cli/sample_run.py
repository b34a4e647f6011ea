"""What `sdjax sample` does with its options: pictures into a folder, with sheets and grids."""

import contextlib
import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from sdjax.errors import SdjaxError
from sdjax.folders import check_writable

from .adapted import Adapters, check_words, weights
from .common import prepare_devices
from .previews import Previews
from .sample_options import OF_THE_COMMAND, Axis
from .steered import loaded, shown

MISSING = "--prompt is missing: say what to draw, in quotes"
SAMPLER_OPTIONS = ("spacing", "sigmas", "eta")
# Options of the command that a picture of its own is made with, beside those of `generate`.
_KEPT = (
    "model", "config", "dtype", "quantize", "image_encoder", "refiner", "word", "motion",
    "motion_like",
)  # fmt: skip
# Of these there may be one for each prompt or image.
_PICTURES = "image", "mask", "depth"
_TEXTS = "negative_prompt", "prompt_2", "negative_prompt_2"
_HASHED = 10  # digits of a file's hash that A1111 shows


def request_of(given: Mapping[str, Any]):
    """The request of these options, without its ControlNets and its refiner.

    Raises SdjaxError for what does not fit.
    """
    from sdjax.pipeline.plans.request import ARGUMENTS, Request

    names = ARGUMENTS - (OF_THE_COMMAND - {"count", "batch_size"}) - {"fps"}
    asked = {name: value for name, value in given.items() if name in names}
    asked |= {name: list(value) or None for name, value in asked.items() if type(value) is tuple}
    asked["prompt"] = given["prompt"] or [""] * max(1, len(given["image"]))
    seeds = list(given["seed"])
    asked["seed"] = None if seeds == [-1] else seeds[0] if len(seeds) == 1 else seeds
    asked["weighting"] = None if given["weighting"] == "none" else given["weighting"]
    asked["regions"] = [_region(one) for one in given["region"]]
    options = {name: given[name] for name in SAMPLER_OPTIONS if given[name] is not None}
    return Request(**asked, options=options)


def carry_out(
    given: Mapping[str, Any], cells: list[dict[str, Any]], axes: Mapping[str, Axis]
) -> None:
    """Makes the pictures of each of the `cells`, options that differ in the axes' settings."""
    import sdjax
    from sdjax.models.motion import MotionConfig
    from sdjax.parallel import Placement
    from sdjax.pipeline.given import first_frame
    from sdjax.pipeline.given.arguments import whole
    from sdjax.pipeline.model.files import read_model
    from sdjax.pipeline.plans.handoff import changed
    from sdjax.pipeline.plans.told import SCORED
    from sdjax.pipeline.results.pictures import FPS, PictureFolder
    from sdjax.pipeline.stable_diffusion import plan_for
    from sdjax.sound.files import write_sound
    from sdjax.weights.motion import find_motion

    if given["grid"] is not None:
        whole(1)("grid", given["grid"])
    steered = [
        shown(cell["control"], cell["reference"], cell["image_encoder"]) for cell in cells
    ]
    adapters = [weights(cell["lora"]) for cell in cells]
    check_words(given["word"])
    first = request_of(cells[0])
    if given["seed"] == (-1,) and len(cells) > 1:  # one for all
        cells = [{**cell, "seed": (int(first.seeds[0]),)} for cell in cells]
    requests = [request_of(cell) for cell in cells] if len(cells) > 1 else [first]
    check_writable(given["out"])
    # Some models move a picture and take no prompt; the one that comes along does.
    if given["model"] is None and not (given["prompt"] or given["image"]):
        raise SdjaxError(MISSING)
    placement = Placement(given["fsdp"], given["tensor"])
    prepare_devices()
    placement.here()  # refuses what does not fit the devices, before the model is read
    dtype, offload = given["dtype"], given["offload"]
    networks, held = {}, {"dtype": dtype, "offload": offload}
    controls = [loaded(some, given["image_encoder"], networks, **held) for some in steered]
    source = str(sdjax.EMOJI) if given["model"] is None else given["model"]
    found = read_model(source, config=given["config"])
    moves = found.checkpoint.family == "svd"
    if not (given["prompt"] or moves):
        raise SdjaxError(MISSING)
    kind = _of_model(_kind(given, moves), given, found)
    previews, checker = _looking(given)
    # Before minutes go by with the weights.
    for asked, own in zip(requests, controls, strict=True):
        asked.controls = own
        asked.fps = given["fps"] if moves else None
        asked.preview, asked.safety_checker = previews and previews.preview, checker
    refines, motion = given["refiner"] is not None, None
    if given["motion"] is not None:
        motion = MotionConfig.from_dict(find_motion(given["motion"])[0].config)
    plans = [
        # A score is the refiner's.
        plan_for(
            found, changed(asked, dict.fromkeys(SCORED if refines else ())), source, dtype, motion
        )
        for asked in requests
    ]
    layout = _layout(given, found, plans)
    pipeline = sdjax.StableDiffusion.from_model(
        found, dtype, source, offload, placement, given["quantize"]
    )
    if motion is not None:
        pipeline.load_motion(given["motion"], like=given["motion_like"])
    for path in given["word"]:
        pipeline.load_textual_inversion(path)
    counting = Adapters(pipeline)
    if refines:
        refiner = sdjax.StableDiffusion.from_pretrained(
            given["refiner"], dtype=dtype, offload=offload, placement=placement
        )
        for asked in requests:
            asked.refiner = refiner
    model = named(source)
    folder = PictureFolder(given["out"], kind)
    total = sum(asked.total for asked in requests)
    made, captions, paths = [], [], []
    try:
        for cell, asked, planned, own in zip(cells, requests, plans, adapters, strict=True):
            counting.count(own)
            done = 0
            for _, images in pipeline.generated(asked):
                for one in images:
                    image = shown_of(one)
                    notes = settings_of(cell, asked, planned, done, image)
                    if "nsfw" in image.info:
                        notes["nsfw"] = image.info["nsfw"]
                    text = parameters(notes, asked, planned, image, model)
                    fps = given["fps"] or (first_frame.FPS if moves else FPS)
                    paths.append(folder.save(one, notes, text, given["json"], fps))
                    if layout is not None:
                        sound = layout.sound(image)
                        write_sound(paths[-1].with_suffix(".wav"), sound.samples, sound.rate, notes)
                    made.append(image)
                    captions.append(notes["prompt"])
                    done += 1
    except BaseException:  # interrupted, or the disk is full
        if made:
            print(f"{len(made)} of {total} pictures are in {given['out']}")
            with contextlib.suppress(SdjaxError):
                print(folder.save_sheet(made, captions, paths[0]))
        raise
    overviews = _overviews(folder, made, captions, paths, axes, given["grid"], first.total)
    if previews is not None:
        overviews.append(previews.sheet(given["grid"]))
    listed = ", ".join(map(str, overviews))
    if flagged := sum(image.info.get("nsfw", False) for image in made):
        print(f"{flagged} of {len(made)} pictures were flagged by the safety checker")
    print(f"{len(made)} pictures from seed {requests[0].seeds[0]} on, and {listed}")


def shown_of(made):
    """The picture that a sheet shows of what was made: itself, a clip's middle, a spectrogram."""
    if isinstance(made, list):
        return made[len(made) // 2]
    return getattr(made, "picture", made)


def _of_model(kind: str, given: Mapping[str, Any], found) -> str:
    """Of the files of this model; SdjaxError where what it makes does not go into such files."""
    from sdjax.pipeline.model.files import SOUND
    from sdjax.sound.files import FORMATS

    sounds = found.checkpoint.family == SOUND
    if sounds and given["format"] is None:
        return FORMATS[0]
    if sounds != (kind in FORMATS):
        what = f"sound, whose --format is one of {', '.join(FORMATS)}" if sounds else "pictures"
        raise SdjaxError(f"this model makes {what}, got --format {kind}")
    return kind


def _layout(given: Mapping[str, Any], found, plans):
    """How the pictures of these plans are heard, None where nobody asks; SdjaxError for others."""
    from sdjax.pipeline.model.files import SOUND
    from sdjax.sound.pictures import layout

    if given["sound"] is None:
        return None
    if found.checkpoint.family in (SOUND, "svd") or given["frames"] is not None:
        raise SdjaxError("--sound is for pictures, and this makes sound or clips: leave it out")
    wanted = layout(given["sound"])
    for planned in plans:
        if planned.size[0] != wanted.mel.bins:
            raise SdjaxError(
                f"--sound {given['sound']} is of pictures {wanted.mel.bins} pixels high, these are "
                f"{planned.size[0]}"
            )
    return wanted


def _kind(given: Mapping[str, Any], moves: bool) -> str:
    """Of the files; SdjaxError where what is made does not go into such files.

    moves: whether the model makes clips by itself.
    """
    from sdjax.pipeline.given.arguments import number
    from sdjax.pipeline.results.movies import check_there
    from sdjax.pipeline.results.notes import CLIPS, FORMATS
    from sdjax.sound.files import FORMATS as SOUNDS

    moving, kind = moves or given["frames"] is not None, given["format"]
    for name in ("motion", "fps"):
        if given[name] is not None and not moving:
            raise SdjaxError(f"--{name} is for clips: give --frames too")
    if given["motion_like"] is not None and given["motion"] is None:
        raise SdjaxError("--motion-like is for motion modules: give --motion too")
    if given["fps"] is not None:
        number(0.1, 1000)("fps", given["fps"])
    kind = kind or ("gif" if moving else "png")
    if not moving and kind in SOUNDS:
        return kind
    if moving != (kind in CLIPS) and kind != "webp":
        kinds, what = (CLIPS, "clips") if moving else (FORMATS, "pictures")
        raise SdjaxError(f"--format of {what} is one of {', '.join(kinds)}, got {kind}")
    if kind == "mp4":
        check_there()
    return kind


def _looking(given: Mapping[str, Any]):
    """(previews, safety checker) of the options, None for what is not asked for."""
    import sdjax

    for needed, name in (("preview", "preview_vae"), ("safety_checker", "blank")):
        if given[name] and given[needed] is None:
            option, other = (f"--{word.replace('_', '-')}" for word in (name, needed))
            raise SdjaxError(f"{option} needs {other}")
    previews = checker = None
    if given["preview"] is not None:
        previews = Previews(given["out"] / "previews", given["preview"], given["preview_vae"])
    if given["safety_checker"] is not None:
        checker = sdjax.SafetyChecker.from_pretrained(
            given["safety_checker"], blank=given["blank"]
        )
    return previews, checker


def _overviews(folder, made, captions, paths, axes, columns, each) -> list[Path]:
    """Writes a sheet of all, or with axes a grid for each of the pictures of a cell."""
    from sdjax.evaluation.grids import labelled_grid

    if not axes:
        return [folder.save_sheet(made, captions, paths[0], columns)]
    across, down = (axes[side].labels if side in axes else [""] for side in ("x", "y"))
    written = []
    for i in range(each):
        rows = [
            [made[(row * len(across) + column) * each + i] for column in range(len(across))]
            for row in range(len(down))
        ]
        written.append(folder.save_beside(labelled_grid(rows, across, down), paths[i], "xy"))
    return written


def settings_of(cell: Mapping[str, Any], asked, planned, number: int, image) -> dict[str, Any]:
    """What a picture was made with, in the words of the command: what makes it again."""
    from sdjax.pipeline.given.inputs import chosen

    settings = {
        name: value
        for name, value in cell.items()
        if (name in _KEPT or name not in OF_THE_COMMAND) and value not in (None, ())
    }
    for name in (*_PICTURES, *_TEXTS):
        given = settings.get(name)
        if given is not None:
            which = chosen(name, len(given), len(asked.prompt), asked.total)[number]
            settings[name] = given[which] if name in _TEXTS else [str(given[which])]
    settings |= {
        "prompt": asked.prompt[number // asked.count],
        "guidance_scale": float(planned.guidance_scale[number]),
        "seed": image.info["seed"],
    }
    if asked.strength is not None:
        settings["strength"] = float(planned.conditions.strength[number])
    if asked.preset is None:
        settings["steps"] = asked.steps or planned.steps
    if asked.variations is not None:
        settings["variation_seed"] = int(asked.variations[number])
    plain = (int, float, str, bool, list)
    return {
        name: list(map(str, value)) if isinstance(value, tuple)
        else value if isinstance(value, plain) else str(value)
        for name, value in settings.items()
    }  # fmt: skip


def parameters(notes, asked, planned, image, model: Mapping[str, str]) -> str:
    """A picture's settings in A1111's words, what a preset stands for among them."""
    from sdjax.pipeline.results import infotext

    used = {"steps": asked.steps or planned.tables[0].evaluations, "sampler": asked.sampler}
    used |= {name: asked.options[name] for name in SAMPLER_OPTIONS if name in asked.options}
    # Theirs is the size of the first pass.
    size = image.size[::-1] if asked.hires is None else planned.size
    return infotext.written({**notes, **used}, size, model)


def named(source: str) -> dict[str, str]:
    """What a model is called in a picture's text, and of a single file the start of its hash."""
    path = Path(source)
    if not path.is_file():
        return {"name": path.name}
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256")
    return {"name": path.stem, "hash": digest.hexdigest()[:_HASHED]}


def _region(given: str):
    """The region of MASK.png:PROMPT; SdjaxError for anything else."""
    from sdjax.pipeline.given.regions import Region

    mask, _, prompt = given.partition(":")
    if not mask or not prompt:
        raise SdjaxError(f"--region must be MASK.png:PROMPT, got {given}")
    return Region(prompt, Path(mask))
