"""Metrics on generated pictures, and captioned sheets of them.

An evaluation is a configuration and a function of a model and it, found by `run`. Each is imported
when it is asked for, as what they compute with takes long to import.
"""

import importlib
from typing import TYPE_CHECKING

_HOME = {
    "augmentation": ("Augmentation", "evaluate_augmentation"),
    "generation": ("Generation",),
    "kinds": ("EVALUATIONS", "run"),
    "molecules": ("Molecules", "evaluate_molecules"),
    "moving": ("Moving", "evaluate_moving"),
    "nearest_picture": ("NearestNeighbour", "evaluate_nearest"),
    "reconstruction": ("Reconstruction", "evaluate_reconstruction"),
    "shapes_accuracy": ("ShapesAccuracy", "evaluate_shapes"),
    "sheets": ("sheet",),
    "similarity": ("Similarity", "evaluate_similarity"),
    "spoken_digits": ("SpokenDigits", "evaluate_digits"),
}
_MODULE_OF = {name: module for module, names in _HOME.items() for name in names}
__all__ = list(_MODULE_OF)

if TYPE_CHECKING:
    from .augmentation import (
        Augmentation as Augmentation,
        evaluate_augmentation as evaluate_augmentation,
    )
    from .generation import Generation as Generation
    from .kinds import EVALUATIONS as EVALUATIONS, run as run
    from .molecules import Molecules as Molecules, evaluate_molecules as evaluate_molecules
    from .moving import Moving as Moving, evaluate_moving as evaluate_moving
    from .nearest_picture import (
        NearestNeighbour as NearestNeighbour,
        evaluate_nearest as evaluate_nearest,
    )
    from .reconstruction import (
        Reconstruction as Reconstruction,
        evaluate_reconstruction as evaluate_reconstruction,
    )
    from .shapes_accuracy import (
        ShapesAccuracy as ShapesAccuracy,
        evaluate_shapes as evaluate_shapes,
    )
    from .sheets import sheet as sheet
    from .similarity import Similarity as Similarity, evaluate_similarity as evaluate_similarity
    from .spoken_digits import SpokenDigits as SpokenDigits, evaluate_digits as evaluate_digits
else:

    def __getattr__(name):
        if name not in _MODULE_OF:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        value = getattr(importlib.import_module(f"{__name__}.{_MODULE_OF[name]}"), name)
        globals()[name] = value
        return value


def __dir__():
    return sorted(__all__)
