"""A new word of the text encoders (textual inversion, arXiv 2208.01618)."""

import dataclasses
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np

from sdjax.errors import SdjaxError, check_at_least
from sdjax.text.tokenizer import END
from sdjax.weights.tensors import lazy, write_safetensors
from sdjax.weights.textual_inversion import token_embeddings, with_vectors

from .adaptation import Adaptation

_NAMES = {"text_encoder": "clip_l", "text_encoder_2": "clip_g"}


@dataclass(frozen=True)
class LearnedWord(Adaptation):
    """Vectors that captions and prompts name by a word; nothing else is trained."""

    word: str = "<new>"
    """What captions and prompts call it; no word that the tokenizer knows already."""
    initial: str = ""
    """Words that the vectors begin as, in turn; empty for random ones of the usual length."""
    vectors: int = 1

    def __post_init__(self):
        check_at_least(1, self, "vectors")

    @property
    def trains_texts(self):
        """Their tables grow."""
        return True

    def fitted(self, networks):
        """Text encoders and tokenizers that know the word; SdjaxError where they do already."""
        encoders, tokenizers, ids = {}, {}, []
        for name, tokenizer in networks.tokenizers.items():
            pieces = tokenizer.words([self.initial])[0] if self.initial else []
            ids.append(tuple(i for piece in pieces for i in piece))
            if self.initial and not ids[-1]:
                raise SdjaxError(f"adaptation.initial {self.initial!r} has no token to begin from")
            if len(ids[-1]) > self.vectors:
                raise SdjaxError(
                    f"adaptation.initial {self.initial!r} has {len(ids[-1])} tokens: give the word "
                    f"as many vectors, not {self.vectors}, or begin from a shorter one"
                )
            if len(tokenizer.words([self.word])[0]) == 1:
                raise SdjaxError(
                    f"the word {self.word!r} is known already: choose another adaptation.word"
                )
            tokenizers[name] = tokenizer.with_token(self.word, self.vectors)
            encoder = networks.encoders[name]
            encoders[name] = encoder.clone(config=dataclasses.replace(
                encoder.config,
                vocab_size=len(tokenizers[name]),
                # Not the legacy rule of the largest id, which a learned word's would be.
                eos_token_id=tokenizer.vocabulary[END],
            ))
        networks = dataclasses.replace(networks, encoders=encoders, tokenizers=tokenizers)
        return self.bound(ids=tuple(ids)), networks

    def init(self, key, base):
        """float32 [vectors, width] of each text encoder."""
        tree = {}
        for i, (part, ids) in enumerate(zip(_parts(base), self.ids, strict=True)):
            table = jnp.asarray(token_embeddings(base, part), jnp.float32)
            if ids:
                tree[part] = table[jnp.array(np.resize(ids, self.vectors))]
            else:
                shape = (self.vectors, table.shape[1])
                drawn = jax.random.normal(jax.random.fold_in(key, i), shape)
                tree[part] = drawn * table.std()
        return tree

    def apply(self, base, tree, key=None):
        """The base, its text encoders' tables followed by the vectors."""
        del key
        for part, vectors in tree.items():
            base = with_vectors(base, part, vectors)
        return dict(base)

    def export(self, tree, folder, model, networks, dtype="float32", about=None):
        """Writes `word.safetensors`: {word: vectors}, or clip_l and clip_g of SDXL."""
        del model, networks
        place = folder / "word.safetensors"
        names = {"text_encoder": self.word} if len(tree) == 1 else _NAMES
        state = {names[part]: lazy(np.asarray(vectors)) for part, vectors in tree.items()}
        write_safetensors(place, state, dtype, {"name": self.word, **(about or {})})
        return place


def _parts(base):
    return [name for name in _NAMES if name in base]
