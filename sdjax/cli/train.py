"""`sdjax train`: a recipe to a model."""

from pathlib import Path

from .common import parsed, prepare_devices

_RUN, _OPTIMIZER = "diffusion", "diffusion.optimizer"
WORDS = {
    # diffusers' scripts
    "output_dir": "workdir",
    "pretrained_model_name_or_path": "model",
    "train_data_dir": "data.source folder:PICTURES",
    "instance_data_dir": "data.source folder:PICTURES",
    "dataset_name": "data.source tfds:NAME",
    "caption_column": "data.caption_key",
    "image_column": "data.image_key",
    "resolution": "data.image_size",
    "random_flip": "data.flip",
    "max_train_samples": "examples",
    "train_batch_size": f"{_RUN}.batch_size",
    "max_train_steps": f"{_RUN}.steps",
    "gradient_accumulation_steps": f"{_RUN}.accumulation",
    "gradient_checkpointing": f"{_RUN}.remat",
    "mixed_precision": f"{_RUN}.precision",
    "checkpointing_steps": f"{_RUN}.checkpoint_every",
    "checkpoints_total_limit": f"{_RUN}.keep_checkpoints",
    "seed": f"{_RUN}.seed",
    "learning_rate": f"{_OPTIMIZER}.learning_rate",
    "lr_scheduler": f"{_OPTIMIZER}.schedule",
    "lr_warmup_steps": f"{_OPTIMIZER}.warmup_steps",
    "adam_beta1": f"{_OPTIMIZER}.beta_1",
    "adam_beta2": f"{_OPTIMIZER}.beta_2",
    "adam_epsilon": f"{_OPTIMIZER}.epsilon",
    "adam_weight_decay": f"{_OPTIMIZER}.weight_decay",
    "max_grad_norm": f"{_OPTIMIZER}.clip_norm",
    "prediction_type": f"{_RUN}.denoising.prediction",
    "snr_gamma": f"{_RUN}.denoising.weighting_gamma",
    "noise_offset": f"{_RUN}.denoising.noise_offset",
    "validation_prompt": f"{_RUN}.sheet.prompts",
    "validation_prompts": f"{_RUN}.sheet.prompts",
    # sd-scripts and what people also write
    "outdir": "workdir",
    "out": "workdir",
    "recipe": "config",
    "batch_size": f"{_RUN}.batch_size",
    "steps": f"{_RUN}.steps",
    "lr": f"{_OPTIMIZER}.learning_rate",
    "optimizer_type": f"{_OPTIMIZER}.name",
    "optimizer": f"{_OPTIMIZER}.name",
    "min_snr_gamma": f"{_RUN}.denoising.weighting_gamma",
    "save_every_n_steps": f"{_RUN}.checkpoint_every",
    "sample_every_n_steps": f"{_RUN}.sheet_every",
    "sample_prompts": f"{_RUN}.sheet.prompts",
    "flip_aug": "data.flip",
    "enable_bucket": "data.buckets",
    "min_bucket_reso": "data.bucket_smallest",
    "max_bucket_reso": "data.bucket_largest",
    "bucket_reso_steps": "data.bucket_step",
    "enable_wildcard": "data.caption_lines",
    "validation_split": "data.validation",
    "shuffle_caption": f"{_RUN}.captions.shuffle",
    "keep_tokens": f"{_RUN}.captions.keep",
    "caption_tag_dropout_rate": f"{_RUN}.captions.tag_dropout",
    "caption_dropout_rate": f"{_RUN}.caption_dropout",
    "multires_noise_iterations": f"{_RUN}.denoising.pyramid_iterations",
    "multires_noise_discount": f"{_RUN}.denoising.pyramid_discount",
    "cache_text_encoder_outputs": f"{_RUN}.cache_texts",
    "prior_loss_weight": f"{_RUN}.prior.weight",
    "network_dim": f"{_RUN}.adaptation.rank",
    "network_alpha": f"{_RUN}.adaptation.alpha",
}
"""What other programs call options of a recipe."""


def train(config: Path, workdir: Path) -> tuple[Path, Path]:
    """Train a model by a recipe. The same command goes on where an earlier one was stopped.

    sdjax train --config configs/shapes.py --workdir runs/shapes

    sdjax train --config configs/shapes.py --workdir runs/short --diffusion.steps 800

    Every value of the recipe is an option; with --config and --help they are all listed.

    Args:
        config: A recipe: one of the project's by its name, such as shapes, or a Python file that
            sets `config`. An unknown name lists them.
        workdir: Folder for checkpoints, metrics, sample sheets and, at the end, the model.
    """
    return config, workdir


def run(arguments: list[str], program: str) -> int:
    """Reads the recipe's own options once its file is known, then trains; 3 where stopped early."""
    wants_help = {"-h", "--help"} & set(arguments)
    has_config = any(text.split("=")[0] == "--config" for text in arguments)
    if wants_help and has_config:
        arguments = [*(a for a in arguments if a not in wants_help), "--workdir", "."]
    (config, workdir), rest = parsed(
        train, arguments, program, words=WORDS, ours={n.split()[0] for n in WORDS.values()},
        required=["--config", "--workdir"], return_unknown_args=True,
    )  # fmt: skip
    from sdjax import parallel, training
    from sdjax.training.recipes.recipe import load_config, with_overrides

    rest = ["--help"] if wants_help else rest
    recipe = with_overrides(load_config(config), rest, f"{program} train --config {config}")
    prepare_devices([run.batch_size for run in recipe.runs.values()])
    with parallel.together(recipe.distributed):
        return 0 if training.train(recipe, workdir) else 3
