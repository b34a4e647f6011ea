"""Training: recipes, objectives, one state, one step, one loop."""

from .autoencoder import AutoencoderObjective, AutoencoderRun
from .config import OptimizerConfig, RunConfig
from .curriculum import Lesson
from .denoising import DenoisingConfig, ScheduleConfig
from .feed import ArrayBatches
from .latent import LatentObjective, LatentRun
from .loop import Outcome, fit
from .optimizers import make_optimizer
from .pixel import PixelObjective, PixelRun
from .recipe import Recipe, load_config, with_overrides
from .recipe_names import known_recipes
from .sheets import SheetConfig
from .state import TrainState
from .step import make_step
from .train import kept_models, train

__all__ = [
    "ArrayBatches",
    "AutoencoderObjective",
    "AutoencoderRun",
    "DenoisingConfig",
    "LatentObjective",
    "LatentRun",
    "Lesson",
    "OptimizerConfig",
    "Outcome",
    "PixelObjective",
    "PixelRun",
    "Recipe",
    "RunConfig",
    "ScheduleConfig",
    "SheetConfig",
    "TrainState",
    "fit",
    "kept_models",
    "known_recipes",
    "load_config",
    "make_optimizer",
    "make_step",
    "train",
    "with_overrides",
]
