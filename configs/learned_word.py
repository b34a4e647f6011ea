r"""A learned word (textual inversion): a few vectors that pictures of one thing have in common.

  python main.py train --config configs/learned_word.py --model MODEL --workdir runs/learned_word \
      --data.source folder:pictures --diffusion.adaptation.word "<cat-toy>" \
      --diffusion.adaptation.initial toy --diffusion.captions.prompt "a photo of <cat-toy>"

The result is runs/learned_word/word.safetensors.
"""

from sdjax.data import DataConfig
from sdjax.data.tags import CaptionConfig
from sdjax.training import OptimizerConfig, Recipe, TuningRun, adaptations

config = Recipe(
    data=DataConfig(source="folder:pictures", image_size=0),
    diffusion=TuningRun(
        adaptation=adaptations.LearnedWord(word="<new>", vectors=1),
        captions=CaptionConfig(prompt="a photo of <new>"),
        steps=1_000,
        batch_size=4,
        optimizer=OptimizerConfig(learning_rate=5e-3, schedule="cosine", warmup_steps=50),
        ema_decay=0.0,
        sheet_every=250,
        checkpoint_every=250,
    ),
)
