"""`sdjax augment`: labelled pictures to more of them."""

from pathlib import Path

from sdjax.words import WORDS

from .common import MODEL_WORDS, known_words, parsed, prepare_devices

_OF_DATA = {
    "data_dir": "data.source folder:PICTURES", "data": "data.source folder:PICTURES",
    "train_data_dir": "data.source folder:PICTURES", "num_synthetic": "per_image",
    "examples_per_image": "per_image", "resolution": "data.image_size",
}  # fmt: skip


def run(arguments: list[str], program: str) -> int:
    """Reads the options, and makes the pictures."""
    import dataclasses
    from typing import Annotated

    import tyro

    import sdjax
    from sdjax.augmentation import Augmentation
    from sdjax.data import DataConfig
    from sdjax.errors import SdjaxError
    from sdjax.folders import check_writable
    from sdjax.pipeline.model.files import read_model

    nothing = DataConfig(source="", image_size=0, require_captions=False)

    def augment(
        options: Annotated[Augmentation, tyro.conf.arg(name="")],
        out: Path,
        data: DataConfig = nothing,
        model: str | None = None,
        config: Path | None = None,
    ) -> None:
        """Make variations of labelled pictures, with their labels and where they come from.

        sdjax augment --model M --data.source folder:PICTURES --out MORE --per-image 4

        sdjax evaluate augmentation --real PICTURES --synthetic MORE --test OTHERS

        A picture's class is the name of its folder. Stopped, the same command goes on.

        Args:
            options: How the pictures are made.
            out: Folder of the pictures, LABEL/NAME-K.png, with metadata.jsonl.
            data: The labelled pictures; image_size 0 is the model's.
            model: A diffusers folder, a .safetensors or .ckpt file, or a hub id; where not given,
                the model that comes with the project.
            config: Of a single file, if its networks are of other sizes than the published.
        """
        if not data.source:
            raise SdjaxError("--data.source is needed, such as folder:PICTURES")
        check_writable(out)
        prepare_devices()
        source = sdjax.EMOJI if model is None else model
        pipeline = sdjax.StableDiffusion.from_model(
            read_model(source, config=config), "float32", source
        )
        from sdjax.augmentation import augment

        counts = augment(pipeline, data, out, options, str(source))
        left = f", {counts['left_out']} left out by the filter" if counts["left_out"] else ""
        there = f" beside {counts['before']} of before" if counts["before"] else ""
        print(f"{counts['made']} pictures in {out}{there}{left}")

    ours = {"model", "config", "out"} | {f.name for f in dataclasses.fields(Augmentation)}
    words = {**known_words(ours, {**MODEL_WORDS, **WORDS}), **_OF_DATA}
    words = {word: name for word, name in words.items() if word not in ours}
    parsed(augment, arguments, program, words=words, ours={*ours, "data.source"},
           required=["--out"], config=(tyro.conf.OmitSubcommandPrefixes,))  # fmt: skip
    return 0
