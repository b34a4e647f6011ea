r"""A LoRA: what pictures of your own show, as a small file for a model that you have.

    python main.py train --config configs/lora.py --model MODEL --workdir runs/lora \
        --data.source folder:pictures

MODEL is a diffusers folder, a single file or a hub id of SD1, SD2 or SDXL. Captions stand beside
the pictures; --diffusion.captions.prompt "a drawing in my style" gives all of them the same. The
result is runs/lora/lora.safetensors, with the keys of sd-scripts, and runs/lora/peft for peft.
"""

from sdjax.data import DataConfig
from sdjax.training import OptimizerConfig, Recipe, TuningRun, adaptations

config = Recipe(
    data=DataConfig(source="folder:pictures", image_size=0),
    diffusion=TuningRun(
        adaptation=adaptations.LoRA(rank=16, alpha=16.0),
        steps=1_000,
        batch_size=4,
        optimizer=OptimizerConfig(learning_rate=1e-4, schedule="cosine", warmup_steps=50),
        ema_decay=0.0,
        sheet_every=250,
        checkpoint_every=250,
    ),
)
