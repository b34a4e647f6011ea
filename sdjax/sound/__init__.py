"""Sound as arrays: spectrograms and what was heard before them, files, and pictures of sound."""

from sdjax.sound.files import read_sound, write_sound
from sdjax.sound.mel import Mel
from sdjax.sound.pictures import LAYOUTS, Layout
from sdjax.sound.sounds import Sound
from sdjax.sound.stft import griffin_lim, istft, stft

__all__ = [
    "LAYOUTS", "Layout", "Mel", "Sound", "griffin_lim", "istft", "read_sound", "stft", "write_sound",
]
