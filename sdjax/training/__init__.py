"""Training: recipes, objectives, one state, one step, one loop."""

from . import adaptations
from .loop.config import OptimizerConfig, RunConfig
from .loop.feed import ArrayBatches
from .loop.fit import Outcome, fit
from .loop.optimizers import make_optimizer
from .loop.state import TrainState
from .loop.step import make_step
from .objectives.adversary import AdversaryConfig
from .objectives.autoencoder import AutoencoderObjective, AutoencoderRun
from .objectives.consistency import ECT
from .objectives.curriculum import Lesson
from .objectives.denoising import DenoisingConfig, ScheduleConfig
from .objectives.dmd2 import DMD2
from .objectives.latent import LatentObjective, LatentRun
from .objectives.lcm import LCM
from .objectives.molecules import MoleculeObjective, MoleculeRun
from .objectives.pixel import PixelObjective, PixelRun
from .objectives.progressive import Progressive
from .objectives.sheets import SheetConfig
from .objectives.tuning import PriorConfig, TuningRun, TuningSheet, ValidationConfig
from .recipes.names import known_recipes
from .recipes.recipe import Recipe, load_config, with_overrides
from .recipes.train import kept_models, train

__all__ = [
    "AdversaryConfig",
    "ArrayBatches",
    "AutoencoderObjective",
    "AutoencoderRun",
    "DMD2",
    "DenoisingConfig",
    "ECT",
    "LCM",
    "LatentObjective",
    "LatentRun",
    "Lesson",
    "MoleculeObjective",
    "MoleculeRun",
    "OptimizerConfig",
    "Outcome",
    "PixelObjective",
    "PixelRun",
    "PriorConfig",
    "Progressive",
    "Recipe",
    "RunConfig",
    "ScheduleConfig",
    "SheetConfig",
    "TrainState",
    "TuningRun",
    "TuningSheet",
    "ValidationConfig",
    "adaptations",
    "fit",
    "kept_models",
    "known_recipes",
    "load_config",
    "make_optimizer",
    "make_step",
    "train",
    "with_overrides",
]
