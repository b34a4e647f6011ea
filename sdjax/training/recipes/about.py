"""What is told of a training beside its result."""

import json
import time
from collections import Counter
from pathlib import Path

from sdjax.mirror import place_of
from sdjax.training.loop.settings import say
from sdjax.training.loop.validation import Best
from sdjax.weights.folder import write_json

NAME = "result.json"


def metadata(recipe, workdir: Path, texts, step: int) -> dict[str, str]:
    """sd-scripts' metadata of a file trained by a `TuningRun` on captions `texts` until `step`."""
    run, folder = recipe.diffusion, recipe.data.source.rpartition("/")[2]
    tags = Counter(tag.strip() for text in texts for tag in text.split(","))
    return {
        "ss_output_name": workdir.resolve().name,
        "ss_sd_model_name": str(recipe.model),
        "ss_learning_rate": str(run.optimizer.learning_rate),
        "ss_optimizer": run.optimizer.name,
        "ss_lr_scheduler": run.optimizer.schedule,
        "ss_max_train_steps": str(run.steps),
        "ss_steps": str(step),
        "ss_total_batch_size": str(run.images_per_step),
        "ss_seed": str(run.seed),
        "ss_resolution": str((recipe.data.image_size,) * 2),
        "ss_clip_skip": str(run.clip_skip + 1) if run.clip_skip else "None",
        "ss_mixed_precision": {"bfloat16": "bf16", "float16": "fp16"}.get(run.precision, "no"),
        "ss_num_train_images": str(len(texts)),
        "ss_dataset_dirs": json.dumps({folder: {"n_repeats": 1, "img_count": len(texts)}}),
        "ss_tag_frequency": json.dumps({folder: tags}),
        "ss_training_finished_at": str(time.time()),
    }


def tell_result(workdir: Path, place: Path, steps: int, best: Best | None):
    """Says, and writes down in `result.json`, which checkpoint the exported result is."""
    result = {"result": place.name, "step": steps, "steps": steps}
    if best is None:
        say(f"finished: {place_of(place)}")
    else:
        result |= {"step": best.step, "validation_loss": best.loss}
        say(f"finished: {place_of(place)}, of step {best.step} of {steps}, whose validation loss is the "
            f"least: {best.loss:.4f}")
    write_json(workdir / NAME, result)
