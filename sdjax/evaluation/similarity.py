"""Fréchet and kernel distance, precision and recall, of pictures and a data source."""

from dataclasses import dataclass, field

from sdjax.data import DataConfig
from sdjax.errors import SdjaxError

from .distances import frechet_distance, kernel_distance, precision_recall
from .features import extract, feature_function
from .generation import Generation, generate
from .known import known_pictures
from .report import Figures, percent, show


@dataclass(frozen=True)
class Similarity:
    """Distances between real pictures and generated ones, or those of a folder.

    Writes similarity.json. The same numbers between two halves of the real pictures show what can
    be reached. They may be compared between runs with equal features and numbers of pictures only.
    """

    folder: str | None = None
    """Pictures to judge; where None, the model makes some for the source's own captions."""
    images: int = 1000
    """Pictures of each kind, at most."""
    features: str = "default"
    """default, pixels, edges, textures, or "module:function" (images [N, H, W, 3] in [-1, 1] to
    [N, D]), such as an Inception network for the published FID."""
    neighbours: int = 3
    """Neighbours of precision and recall."""
    picture_seed: int = 0
    """Chooses the real pictures."""
    data: DataConfig = field(default_factory=DataConfig)
    """Where the real pictures come from."""
    out: str = "evaluation"
    """Folder of the results."""
    generation: Generation = field(default_factory=Generation)
    """How the model is asked for pictures."""

    @property
    def needs_model(self) -> bool:
        """Whether a model makes the pictures."""
        return self.folder is None

    def __post_init__(self):
        if self.neighbours < 1 or self.images <= self.neighbours:
            raise SdjaxError(f"more images than neighbours, and at least one neighbour expected, "
                             f"got {self.images} images, {self.neighbours} neighbours")


def similarity(real, generated, neighbours=3):
    """All distances of two feature sets [N, D], [M, D], as a dict of floats."""
    precision, recall = precision_recall(real, generated, neighbours)
    kernel, error = kernel_distance(real, generated)
    return {"frechet": frechet_distance(real, generated), "kernel": kernel, "kernel_error": error,
            "precision": precision, "recall": recall}


def evaluate_similarity(model, config: Similarity = Similarity(), subject=None):
    """Run it: {"generated": …, "real": … or None, "counts": …, "model", "files", "settings"}; the
    model may be None where a folder is given. subject: what is measured is called so there, its
    folder or file.
    """
    figures, function = Figures(config, "similarity", subject), feature_function(config.features)
    real, captions = known_pictures(config.data, 2 * config.images, config.picture_seed)
    # The second half is the yardstick, and is never what the captions are taken from.
    real, others = real[:config.images], real[config.images:]
    if config.folder is not None:
        data = DataConfig(source=f"folder:{config.folder}", image_size=config.data.image_size,
                          require_captions=False)
        made, _ = known_pictures(data, config.images, config.picture_seed)
    else:
        made = generate(model, captions[:len(real)], config.generation)
    features = extract(function, real)
    results = {
        "generated": similarity(features, extract(function, made), config.neighbours),
        "real": None,
        "counts": {"real": len(real), "generated": len(made), "features": features.shape[1]},
    }
    if len(others) == len(real):
        results["real"] = similarity(features, extract(function, others), config.neighbours)
    results = figures.write(results)
    columns = {"generated": results["generated"]}
    if results["real"]:
        columns["other real pictures"] = results["real"]
    title = f"{len(made)} pictures beside {len(real)} real ones, features: {config.features}"
    show(title, columns, [
        ("Fréchet distance", *(f"{c['frechet']:.3f}" for c in columns.values())),
        ("kernel distance", *(f"{c['kernel']:.5f} ± {c['kernel_error']:.5f}"
                              for c in columns.values())),
        ("precision", *(percent(c["precision"]) for c in columns.values())),
        ("recall", *(percent(c["recall"]) for c in columns.values())),
    ], figures.path(".json"))
    return results
