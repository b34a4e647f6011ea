"""How well an autoencoder gives pictures back."""

from dataclasses import dataclass, field

import numpy as np

from sdjax.data import DataConfig
from sdjax.data.oracle import score
from sdjax.errors import SdjaxError, check_at_least
from sdjax.parallel import map_over_devices

from .known import known_pictures
from .report import Figures, percent, show
from .sheets import sheet, to_uint8


@dataclass(frozen=True)
class Reconstruction:
    """A model's autoencoder on pictures of a source: peak signal-to-noise ratio, and for shapes
    whether the oracle still reads them.

    Writes reconstruction.json, and reconstruction.png with each picture above its reconstruction.
    """

    images: int = 256
    """Pictures, at most."""
    picture_seed: int = 0
    """Chooses the pictures."""
    sheet: int = 16
    """Pairs on the sheet."""
    batch_size: int = 32
    """Pictures at once."""
    data: DataConfig = field(default_factory=DataConfig)
    """Where the pictures come from."""
    out: str = "evaluation"
    """Folder of the results."""

    def __post_init__(self):
        check_at_least(1, self, "images", "batch_size")
        check_at_least(0, self, "sheet")


def psnr(images, others):
    """Peak signal-to-noise ratio of each pair, in dB: float64 [N]; infinite where equal.

    Both [N, ...] of one shape and dtype, uint8 or float in [-1, 1], the range's width being the
    peak.
    """
    images, others = np.asarray(images), np.asarray(others)
    if images.shape != others.shape or images.dtype != others.dtype:
        raise SdjaxError("pairs of one shape and dtype expected, got "
                         f"{images.dtype} {images.shape} and {others.dtype} {others.shape}")
    peak = 255.0 if images.dtype == np.uint8 else 2.0
    error = np.square(images.astype(np.float64) - others.astype(np.float64))
    error = error.reshape(len(images), -1).mean(1)
    with np.errstate(divide="ignore"):
        return 10 * np.log10(peak**2 / error)


def reconstruct(vae, params, images, batch_size=32):
    """Pictures uint8 [N, H, W, 3] through the autoencoder and its posterior's mode, uint8."""
    def run(params, x):
        return vae.decode(params, vae.encode(params, x))

    program, made = map_over_devices(run, items=1), []
    for start in range(0, len(images), batch_size):
        rows = np.minimum(np.arange(start, start + min(batch_size, len(images))), len(images) - 1)
        x = images[rows].astype(np.float32) / 127.5 - 1
        made.append(to_uint8(program(params, x))[:len(images) - start])
    return np.concatenate(made)


def evaluate_reconstruction(model, config: Reconstruction = Reconstruction(), subject=None):
    """Run it: {"psnr": mean dB, "psnr_least": dB, "images": N, "oracle": {"before": share, "after":
    share} for shapes, else None, "model", "files", "settings"}. subject: what the model is called
    there, its folder or file."""
    figures = Figures(config, "reconstruction", subject)
    images, captions = known_pictures(config.data, config.images, config.picture_seed)
    made = reconstruct(model.vae, model.params["vae"], images, config.batch_size)
    decibels = np.minimum(psnr(images, made), 100)
    oracle = None
    if config.data.source == "shapes":
        oracle = {name: float(score(x, captions)["all"].mean())
                  for name, x in (("before", images), ("after", made))}
    results = {"psnr": float(decibels.mean()), "psnr_least": float(decibels.min()),
               "images": len(images), "oracle": oracle}
    results = figures.write(results)
    if config.sheet:
        pairs = np.concatenate([images[:config.sheet], made[:config.sheet]], 1)
        sheet(pairs, captions[:config.sheet], columns=8, scale=2).save(figures.path(".png"))
    rows = [("pictures", len(images)), ("mean PSNR", f"{results['psnr']:.2f} dB"),
            ("least PSNR", f"{results['psnr_least']:.2f} dB")]
    if oracle:
        rows += [("oracle right, pictures", percent(oracle["before"])),
                 ("oracle right, reconstructions", percent(oracle["after"]))]
    show("Reconstructions of the autoencoder", [""], rows, figures.path(".json"))
    return results
