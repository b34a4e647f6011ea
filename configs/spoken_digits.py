r"""Speech: the digits of the Free Spoken Digit Dataset, "seven by jackson".

    python main.py train --config configs/spoken_digits.py --workdir runs/spoken_digits \
        --data.source folder:recordings
    python main.py evaluate spoken-digits --model runs/spoken_digits/model --recordings recordings \
        --generation.guidance-scale 2

`recordings` is the folder of that name of github.com/Jakobovski/free-spoken-digit-dataset: 3,000
recordings of 8 kHz by six speakers, of which the first five of each digit and speaker are kept out.
Pictures of 64x64 pixels are log-mel spectrograms of a second. An autoencoder (16x16x4 latents), then
a text-to-image U-Net with its own text encoder, as in configs/shapes.py; what is drawn becomes sound
by Griffin-Lim: `sample --model runs/spoken_digits/model --prompt "seven by jackson" --sound speech`.
"""

from dataclasses import replace
from pathlib import Path

from sdjax.data import DataConfig
from sdjax.training import Recipe, load_config

shapes = load_config(Path(__file__).with_name("shapes.py"))

config = Recipe(
    data=DataConfig(source="folder:recordings", image_size=64),
    autoencoder=replace(
        shapes.autoencoder,
        steps=5_000,
        sheet_every=2_500,
        checkpoint_every=1_000,
        vae=replace(shapes.autoencoder.vae, latent_channels=4, sample_size=64),
    ),
    diffusion=replace(
        shapes.diffusion,
        steps=4_000,
        optimizer=replace(shapes.diffusion.optimizer, learning_rate=3e-3),
        ema_decay=0.995,
        sheet_every=1_000,
        checkpoint_every=500,
        unet=replace(
            shapes.diffusion.unet, sample_size=16, in_channels=4, out_channels=4,
            block_out_channels=(48, 96),
        ),
        denoising=replace(shapes.diffusion.denoising, timestep_mean=0.0),
        sheet=replace(
            shapes.diffusion.sheet,
            guidance_scale=2.0,
            prompts=(
                "zero by george",
                "one by jackson",
                "two by lucas",
                "three by nicolas",
                "four by theo",
                "five by yweweler",
                "six by george",
                "seven by jackson",
            ),
        ),
    ),
)
