"""Sample sheets: what is drawn at an interval, with fixed prompts and seeds."""

from dataclasses import dataclass

from sdjax import diffusion
from sdjax.errors import check_at_least

from .denoising import DenoisingConfig


@dataclass(frozen=True)
class SheetConfig:
    """Sampling of the sheet."""

    prompts: tuple[str, ...] = ()
    """Prompts of text-to-image; where empty, or where the command asks for other data than the
    recipe's and for no prompts, the first captions of the data."""
    images: int = 16
    """Images of the sheet, where prompts do not give the number."""
    sampler: str = "ddim"
    steps: int = 30
    guidance_scale: float = 3.0
    """Also the exported model's own, which it samples with where none is given."""
    seed: int = 0

    def __post_init__(self):
        check_at_least(1, self, "images", "steps")

    def table(self, denoising: DenoisingConfig, clip=None, learned_variance=False):
        """The sampler's `Table` for a network trained so; clip bounds x_0 (1 for pixels).

        A learned variance is used by "ddpm"; other samplers have no place for it.
        """
        uses_variance = learned_variance and self.sampler == "ddpm"
        options = {"variance": "learned_range"} if uses_variance else {}
        return diffusion.sampler(
            self.sampler,
            denoising.schedule.build(),
            self.steps,
            prediction_type=denoising.prediction,
            spacing="trailing",
            clip=clip,
            **options,
        )
