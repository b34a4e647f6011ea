"""Parameters of a model with adapters and learned words on top of them."""

import copy
import dataclasses
import os
import warnings
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Literal, Self

import numpy as np

from sdjax import parallel
from sdjax.errors import SdjaxError, check_finite
from sdjax.models.clip import TextEncoder
from sdjax.models.clip_vision import CLIPVision
from sdjax.models.motion import MotionConfig
from sdjax.models.unet import UNet
from sdjax.text.tokenizer import END, Tokenizer
from sdjax.weights.adapters import Adapter, read_lora, with_adapters
from sdjax.weights.checkpoint import Part
from sdjax.weights.motion import (
    BETAS,
    FIRST_LENGTH,
    LINEAR,
    find_motion,
    motion_of,
    read_motion,
    still,
    with_motion,
    write_motion,
)
from sdjax.weights.quantized.rounding import quantize
from sdjax.weights.textual_inversion import read_textual_inversion, with_vectors
from sdjax.words import told_words

class Adapted:
    """The parameters of a U-Net, an autoencoder and text encoders, and what changes them.

    A subclass sets the networks, tokenizers, `offload` and `place`, then `params`.
    """

    unet: UNet
    text_encoders: tuple[TextEncoder, ...]
    tokenizers: tuple[Tokenizer, ...]
    encoder_parts: tuple[str, ...]
    """Names of the text encoders among the parts."""
    vocoder: Any = None
    """Of a model that makes sound."""
    image_encoder: CLIPVision | None = None
    """What shows the picture to a model that moves one."""
    motion: MotionConfig | None = None
    """Of the motion modules among the U-Net's parameters."""
    _linear: bool = False
    _betas: str = LINEAR
    offload: bool = False
    """Whether parameters stay in the host's memory, and are on the devices only while used."""
    place: parallel.Copies | parallel.Sharded = parallel.COPIES
    """How they lie on the devices."""

    @property
    def params(self) -> dict[str, Any]:
        """Parameters of all networks, adapters applied, a copy on each local device or cut over them
        as the placement has it; with `offload` NumPy arrays.

        Assigned parameters become the ones that adapters are applied to; loaded ones are dropped.
        """
        return self._params

    @params.setter
    def params(self, params: Mapping[str, Any]):
        expected = {"unet", "vae", *self.encoder_parts, *(["vocoder"] if self.vocoder else [])}
        expected |= {"image_encoder"} if self.image_encoder is not None else set()
        if set(params) != expected:
            raise SdjaxError(f"params must have {sorted(expected)}, got {sorted(params)}")
        self._params = self._at_home(dict(params))
        self._base, self._loras = self._params, {}
        if not motion_of(params["unet"]):
            self.motion = None

    def quantized(self, kind: str) -> Self:
        """The same model with its large weights in few bits, see `sdjax.quantize`.

        Loaded adapters stay applied, on top of them; networks and what is compiled are shared.
        """
        other = copy.copy(self)
        motion, loras = self.motion, self._loras
        other.params = quantize(self._base, kind)
        other.motion = motion
        other._apply(loras)
        return other

    def _at_home(self, params):
        """Parameters where they are between calls."""
        if self.offload:
            return parallel.to_host(params)
        return self.place.put(params)

    @told_words
    def load_lora(
        self, path: str | os.PathLike, weight: float = 1.0, name: str | None = None
    ) -> str:
        """Adds a LoRA or another adapter of `docs/checkpoints.md`; several add up.

        Nothing is compiled anew. Keys that find no target are listed in a warning. path: a file,
        or a folder that peft or diffusers saved it to. weight: its strength; a DoRA's lengths and
        an OFT's rescaling count in full at any but 0. name: to call it by later, the file's or
        folder's by default; it is returned. Raises SdjaxError for an adapter of another model or of
        which anything is not understood, and where the name is taken.
        """
        check_finite(weight=weight)
        name = name or (Path(path).resolve().name if Path(path).is_dir() else Path(path).stem)
        if name in self._loras:
            raise SdjaxError(
                f"an adapter {name!r} is loaded: unload it first, or give this one another name="
            )
        layers = self.unet.config.layers_per_block
        adapter = read_lora(path, self._base, layers if isinstance(layers, int) else layers[0])
        self._apply({**self._loras, name: (adapter, weight)})
        return name

    def set_lora_weights(self, **weights: float) -> None:
        """Changes the strength of loaded adapters, by name; 0 keeps one loaded without effect."""
        check_finite(**weights)
        self._check_loaded(weights)
        changed = {name: (self._loras[name][0], weight) for name, weight in weights.items()}
        self._apply({**self._loras, **changed})

    def unload(self, *names: str) -> None:
        """Takes adapters out again, all where none is named; the parameters are the old ones."""
        self._check_loaded(names)
        kept = set(self._loras) - set(names or self._loras)
        self._apply({name: lora for name, lora in self._loras.items() if name in kept})

    def _apply(self, loras: dict[str, tuple[Adapter, float]]) -> None:
        """Makes these the loaded adapters; where their application fails, nothing has changed."""
        self._params = with_adapters(self._base, list(loras.values()))
        self._loras = loras

    def _check_loaded(self, names: Iterable[str]) -> None:
        for name in names:
            if name not in self._loras:
                loaded = ", ".join(self._loras) or "none"
                raise SdjaxError(f"no adapter {name!r} is loaded; loaded are: {loaded}")

    @told_words
    def load_motion(
        self,
        source: str | os.PathLike,
        *,
        like: Literal["diffusers", "authors"] | None = None,
        variant: str | None = None,
        revision: str | None = None,
        config: str | os.PathLike | None = None,
    ) -> None:
        """Adds the motion modules of AnimateDiff (arXiv 2307.04725) to the U-Net, in place of others
        that are loaded; `generate(…, frames=16)` makes clips with them.

        source: a diffusers folder of a MotionAdapter, the authors' .ckpt or .safetensors file, or a
        hub id; config: a folder with the config.json of such a file. like: whose norms they are
        run with, "diffusers" or "authors", and whose betas: the modules are trained on linear
        ones, and the authors' code takes them; diffusers takes the model's, as this then does, with
        a warning where those are others. None is the program that the file is for. Adapters stay
        applied. Pictures without frames come out as before. Raises SdjaxError for modules of
        another family, and for files with anything else in them.
        """
        if like not in (None, "diffusers", "authors"):
            raise SdjaxError(f'like must be "diffusers" or "authors", got {like!r}')
        if self.unet.config.of_clips:
            raise SdjaxError("this model makes clips by itself: it takes no motion modules")
        found = find_motion(source, variant=variant, revision=revision, config=config)
        self._take_motion(*found, source, like)

    def _take_motion(self, part: Part, theirs: bool, source, like: str | None = None) -> None:
        """Adds what `find_motion` found."""
        dtype = np.dtype(self.unet.dtype).name
        made, params = read_motion(part, self.unet.config, dtype, source)
        if like is not None and theirs != (like == "authors"):
            theirs = like == "authors"
            first = theirs and made.motion_max_seq_length == FIRST_LENGTH
            made = dataclasses.replace(
                made, motion_norm_over_frames=not theirs, unet_norm_over_frames=first
            )
        betas = self.scheduler_config.get("beta_schedule", LINEAR)
        trained = part.config.get(BETAS, LINEAR)
        if not theirs and betas != trained:
            warnings.warn(
                f"the motion modules are trained on {trained} betas and the model's are {betas}: "
                'like="authors" (--motion-like authors) takes linear ones',
                stacklevel=4,
            )
        base = {**self._base, "unet": with_motion(self._base["unet"], params)}
        base = self._at_home(base)
        self._params = with_adapters(base, list(self._loras.values()))
        self._base, self.motion, self._linear, self._betas = base, made, theirs, trained

    def unload_motion(self) -> None:
        """Takes the motion modules out again."""
        base = {**self._base, "unet": still(self._base["unet"])}
        self._params = with_adapters(base, list(self._loras.values()))
        self._base, self.motion = base, None

    def save_motion(self, folder: str | os.PathLike, dtype: str = "float32") -> None:
        """Writes the loaded motion modules as a folder that diffusers' MotionAdapter loads."""
        if self.motion is None:
            raise SdjaxError("no motion modules are loaded: there is nothing to save")
        write_motion(self.motion, motion_of(self.params["unet"]), folder, dtype, self._betas)

    @told_words
    def load_textual_inversion(self, path: str | os.PathLike, token: str | None = None) -> str:
        """Adds a learned word; returns it, as it is to be written in prompts.

        Read are {token: vectors}, A1111's `string_to_param` and SDXL's `clip_l`/`clip_g`, of one
        vector or several. token: the word, by default the file's. The text encoders get larger
        and are compiled anew, the U-Net is not. Where there are vectors for one of two encoders
        alone, the other reads the word's letters, as in diffusers, and a warning says so. Raises
        SdjaxError for vectors of another model.
        """
        if self.vocoder:
            raise SdjaxError("a model of sound reads no learned words")
        names = self.encoder_parts
        token, vectors = read_textual_inversion(path, self._base, names, token)
        if without := [name for name in names if name not in vectors]:
            warnings.warn(
                f"{path} has no vectors for {without[0]}, which reads {token!r} letter by letter: "
                "the word works in part",
                stacklevel=3,
            )
        encoders, tokenizers, base = list(self.text_encoders), list(self.tokenizers), self._base
        for i, name in enumerate(names):
            if name not in vectors:
                continue
            tokenizers[i] = tokenizers[i].with_token(token, len(vectors[name]))
            base = with_vectors(base, name, vectors[name])
            config = dataclasses.replace(
                encoders[i].config,
                vocab_size=len(tokenizers[i]),
                # Not the legacy rule of the largest id, which a learned word's would be.
                eos_token_id=tokenizers[i].vocabulary[END],
            )
            encoders[i] = encoders[i].clone(config=config)
        base = self._at_home(base)
        self._params = with_adapters(base, list(self._loras.values()))
        self.text_encoders, self.tokenizers = tuple(encoders), tuple(tokenizers)
        self._base = base
        return token
