"""All evaluations, by the classes of their configurations."""

from sdjax.errors import SdjaxError
from sdjax.folders import check_writable

from .augmentation import Augmentation, evaluate_augmentation
from .molecules import Molecules, evaluate_molecules
from .moving import Moving, evaluate_moving
from .nearest_picture import NearestNeighbour, evaluate_nearest
from .reconstruction import Reconstruction, evaluate_reconstruction
from .shapes_accuracy import ShapesAccuracy, evaluate_shapes
from .similarity import Similarity, evaluate_similarity
from .spoken_digits import SpokenDigits, evaluate_digits

EVALUATIONS = {
    ShapesAccuracy: evaluate_shapes,
    Moving: evaluate_moving,
    Similarity: evaluate_similarity,
    NearestNeighbour: evaluate_nearest,
    Reconstruction: evaluate_reconstruction,
    Molecules: evaluate_molecules,
    Augmentation: evaluate_augmentation,
    SpokenDigits: evaluate_digits,
}
"""Configuration class -> function (model, configuration, subject) -> results as a dict for JSON."""


def run(config, load_model, model=None):
    """Run the evaluation that `config`, of a class in EVALUATIONS, describes; returns its results.

    load_model: a function of nothing that gives an `sdjax.StableDiffusion`, or what the evaluation
    is of; called only where it needs one. model: what it is called in the results, its folder, file
    or hub id: results of another in the same folder are kept, and of an unnamed one all.
    """
    if type(config) not in EVALUATIONS:
        known = ", ".join(c.__name__ for c in EVALUATIONS)
        raise SdjaxError(f"expected one of {known}, got {type(config).__name__}")
    check_writable(config.out)
    if not getattr(config, "needs_model", True):
        return EVALUATIONS[type(config)](None, config, getattr(config, "folder", None))
    return EVALUATIONS[type(config)](load_model(), config, model)
