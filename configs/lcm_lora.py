r"""A LoRA by which a model, and those fine-tuned from it, make pictures in 2 to 8 steps: LCM-LoRA.

    python main.py train --config configs/lcm_lora.py --model MODEL --workdir runs/lcm_lora \
        --data.source folder:pictures
    python main.py sample --model MODEL --lora runs/lcm_lora/lora.safetensors --preset lcm-lora \
        --prompt "a lighthouse"

MODEL is a diffusers folder, a single file or a hub id of SD1, SD2 or SDXL. Rank, learning rate and
scales of guidance are those of the published LoRAs. The result is runs/lcm_lora/lora.safetensors,
with the keys of sd-scripts, and runs/lcm_lora/peft for peft and diffusers.
"""

from sdjax.data import DataConfig
from sdjax.training import LCM, OptimizerConfig, Recipe, TuningRun, adaptations
from sdjax.training.objectives.tuning import TuningSheet

config = Recipe(
    data=DataConfig(source="folder:pictures", image_size=0),
    diffusion=TuningRun(
        adaptation=adaptations.LoRA(
            rank=64, alpha=64.0, targets=("transformers", "convolutions"), conv_rank=64,
            conv_alpha=64.0,
        ),
        distillation=LCM(target="online"),
        remat=True,
        steps=1_000,
        batch_size=12,
        optimizer=OptimizerConfig(learning_rate=1e-4, schedule="constant", warmup_steps=0),
        ema_decay=0.0,
        sheet=TuningSheet(steps=4),
        sheet_every=250,
        checkpoint_every=250,
    ),
)
