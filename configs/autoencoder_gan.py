r"""An autoencoder's decoder made sharper by an adversary; latents stay what they are.

    python main.py train --config configs/autoencoder_gan.py --model MODEL \
        --workdir runs/autoencoder_gan --data.source folder:pictures

A patch discriminator with a hinge loss and an adaptive weight, as latent diffusion has it
(arXiv 2012.09841, 2112.10752). LPIPS joins by weights that you have, VGG16's and LPIPS' own:
--autoencoder.perceptual lpips:vgg16.pth,vgg_lpips.pth --autoencoder.perceptual-weight 1. All of
the autoencoder is trained with --autoencoder.trained all. The result is
runs/autoencoder_gan/autoencoder/model, a diffusers folder, to take the place of a model's vae.
"""

from sdjax.data import DataConfig
from sdjax.training import AdversaryConfig, AutoencoderRun, OptimizerConfig, Recipe

config = Recipe(
    data=DataConfig(source="folder:pictures", image_size=0, require_captions=False),
    diffusion=None,
    autoencoder=AutoencoderRun(
        trained="decoder",
        adversary=AdversaryConfig(),
        log_variance=True,
        steps=1_000,
        batch_size=4,
        optimizer=OptimizerConfig(
            learning_rate=4.5e-6, schedule="constant", warmup_steps=0, beta_1=0.5, beta_2=0.9,
            weight_decay=0.0, clip_norm=0.0,
        ),
        ema_decay=0.999,
        sheet_every=250,
        checkpoint_every=250,
    ),
)
