r"""DreamBooth (arXiv 2208.12242): a subject from a few pictures, and its class not forgotten.

    python main.py train --config configs/dreambooth.py --model MODEL --workdir runs/dreambooth \
        --data.source folder:pictures --diffusion.captions.prompt "a photo of sks dog" \
        --diffusion.prior.prompt "a photo of a dog"

Half of each batch is of the class; its pictures are made by the model itself where
--diffusion.prior.folder holds too few. A LoRA is trained; any other adaptation can be set in a copy
of this file.
"""

from sdjax.data import DataConfig
from sdjax.data.tags import CaptionConfig
from sdjax.training import OptimizerConfig, PriorConfig, Recipe, TuningRun, adaptations

config = Recipe(
    data=DataConfig(source="folder:pictures", image_size=0),
    diffusion=TuningRun(
        adaptation=adaptations.LoRA(rank=16, alpha=16.0),
        captions=CaptionConfig(prompt="a photo of sks dog"),
        prior=PriorConfig(prompt="a photo of a dog"),
        steps=800,
        batch_size=2,
        optimizer=OptimizerConfig(learning_rate=1e-4, schedule="cosine", warmup_steps=50),
        ema_decay=0.0,
        sheet_every=250,
        checkpoint_every=250,
    ),
)
