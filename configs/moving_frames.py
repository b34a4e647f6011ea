r"""Pictures of the moving clips: what `configs/moving_shapes.py` trains its motion modules in.

    python main.py train --config configs/moving_frames.py --workdir runs/moving_frames

Every picture is one frame from somewhere in a clip, early ones more often, with the clip's caption:
"a large red circle on a yellow background moving slowly left". What moves left begins at the right,
so that the network learns what these words tell a picture. The networks are those of
`configs/shapes.py` with a level more, whose few places see all of the picture.
"""

from dataclasses import replace
from pathlib import Path

from sdjax.data import DataConfig
from sdjax.training import SheetConfig, load_config

shapes = load_config(Path(__file__).with_name("shapes.py"))
prompts = (
    "a large red circle on a yellow background moving slowly left",
    "a small blue square on a white background moving quickly up right",
    "a medium green triangle on a black background standing still",
    "a large pink star on a cyan background moving quickly down",
)
config = replace(
    shapes,
    data=DataConfig(source="moving", image_size=32, frames=1),
    diffusion=replace(
        shapes.diffusion,
        unet=replace(
            shapes.diffusion.unet,
            block_out_channels=(64, 64, 64),
            down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
            up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        ),
        text_encoder=replace(shapes.diffusion.text_encoder, max_position_embeddings=20),
        sheet=SheetConfig(prompts=prompts),
    ),
)
