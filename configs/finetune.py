r"""Fine-tuning: all parameters of a model's U-Net, on pictures of your own.

    python main.py train --config configs/finetune.py --model MODEL --workdir runs/finetune \
        --data.source folder:pictures

--diffusion.adaptation.text-encoder trains the text encoders too, --diffusion.adaptation.layers
"attn2" only what its name holds. The result is runs/finetune/model, a diffusers folder.
"""

from sdjax.data import DataConfig
from sdjax.training import OptimizerConfig, Recipe, TuningRun, adaptations

config = Recipe(
    data=DataConfig(source="folder:pictures", image_size=0),
    diffusion=TuningRun(
        adaptation=adaptations.Full(),
        caption_dropout=0.1,
        remat=True,
        steps=1_000,
        batch_size=4,
        optimizer=OptimizerConfig(learning_rate=1e-5, schedule="cosine", warmup_steps=50),
        ema_decay=0.0,
        sheet_every=250,
        checkpoint_every=250,
    ),
)
