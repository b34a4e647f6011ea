"""The networks of sound with files: `Vocoder` and `ClapText`."""


import jax
import jax.numpy as jnp

from sdjax.errors import SdjaxError
from sdjax.models import clap, hifigan
from sdjax.weights.checkpoint import Part
from sdjax.weights.folder import STEMS, write_part
from sdjax.weights.hifigan import theirs, vocoder_state
from sdjax.weights.kept_shapes import kept
from sdjax.weights.names import state_from_params
from sdjax.weights.parts import Pretrained, read_alone
from sdjax.weights.tensors import State
from sdjax.words import told_words


@kept
def vocoder_shapes(config: hifigan.VocoderConfig) -> dict:
    """Shapes of a vocoder's parameters."""
    mel = jnp.zeros((1, 1, config.model_in_dim))
    return jax.eval_shape(hifigan.Vocoder(config).init, jax.random.key(0), mel)["params"]


@kept
def clap_shapes(config: clap.ClapTextConfig) -> dict:
    """Shapes of the parameters of CLAP's text encoder."""
    ids = jnp.zeros((1, 1), jnp.int32)
    return jax.eval_shape(clap.ClapText(config).init, jax.random.key(0), ids)["params"]


def _no_config(state: State) -> dict:
    raise SdjaxError(
        "a vocoder's file says nothing of its rates: give config=, a folder with its config.json"
    )


class Vocoder(Pretrained, hifigan.Vocoder):
    """HiFi-GAN; see `sdjax.models.hifigan.Vocoder`. Read are transformers' folders of a
    `SpeechT5HifiGan`, and the authors' files with `config=`, the folder of their config.json."""

    part, stem = "vocoder", STEMS[1]
    config_class, shapes = hifigan.VocoderConfig, staticmethod(vocoder_shapes)

    @classmethod
    def read(cls, source, part, variant, revision, config) -> Part:
        name = part or cls.part
        return read_alone(source, name, variant, revision, config, vocoder_state, _no_config)

    @told_words
    def save_pretrained(self, params, folder, dtype="float32", variant: str | None = None) -> None:
        state = theirs(state_from_params(params))
        write_part(folder, self.config.to_dict(), state, dtype, self.stem, variant)


class ClapText(Pretrained, clap.ClapText):
    """CLAP's text encoder; see `sdjax.models.clap.ClapText`."""

    part, stem = "text_encoder", STEMS[1]
    config_class, shapes = clap.ClapTextConfig, staticmethod(clap_shapes)
