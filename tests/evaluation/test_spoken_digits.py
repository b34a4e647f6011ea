"""What a model speaks, read by a network that was trained on recordings."""

import json

import numpy as np
import pytest

from sdjax.data.sounds import DIGITS
from sdjax.evaluation import SpokenDigits, evaluate_digits
from sdjax.evaluation.digit_reader import trained_reader, varied
from sdjax.evaluation.spoken_digits import distance_within, nearest
from sdjax.sound import LAYOUTS, write_sound

SPEAKERS = ("ann", "bob")


def tone(digit, speaker, rng):
    """A stand-in for a word: a pitch for each digit, two vowels for the speakers."""
    t = np.arange(3_200) / 8_000
    pitch = 300 + 300 * digit + rng.normal(0, 8)
    second = 1.0 if speaker == "ann" else 0.05
    sound = np.sin(2 * np.pi * pitch * t) + second * np.sin(2 * np.pi * 120 * t)
    return np.float32(sound * np.exp(-2 * t) + 0.001 * rng.normal(size=t.shape))


class Speaking:
    """A model that speaks as it is asked for one speaker, and the next digit for the other."""

    def generate(self, prompt, *, seed, **_):
        made = []
        for text, number in zip(prompt, seed, strict=True):
            word, _, speaker = text.split()
            digit = (DIGITS.index(word) + (speaker == "bob")) % 3
            sound = tone(digit, speaker, np.random.default_rng(number))
            made.append(LAYOUTS["speech"].picture(sound, 8_000))
        return np.float32(np.stack(made)) / 127.5 - 1


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder, rng = tmp_path_factory.mktemp("recordings"), np.random.default_rng(0)
    for digit in range(3):
        for speaker in SPEAKERS:
            for number in range(14):
                path = folder / f"{digit}_{speaker}_{number}.wav"
                write_sound(path, 0.4 * tone(digit, speaker, rng), 8_000)
    return folder


def test_what_is_spoken_is_heard(folder, tmp_path, monkeypatch):
    monkeypatch.setattr("sdjax.evaluation.spoken_digits.DIGITS", DIGITS[:3])
    config = SpokenDigits(str(folder), each=1, seeds=2, epochs=25, out=str(tmp_path))
    found = evaluate_digits(Speaking(), config)
    assert found["recordings"]["count"] == 30 and found["made"]["count"] == 12
    for row in ("recordings", "resynthesis"):
        assert found[row]["both"]["accuracy"] > 0.9
    made = {kind: found["made"][kind]["accuracy"] for kind in ("digit", "speaker", "both")}
    assert made == pytest.approx({"digit": 0.5, "speaker": 1, "both": 0.5}, abs=0.1)
    low, high = found["made"]["digit"]["interval"]
    assert low < made["digit"] < high and len(found["seeds"]) == 2
    assert json.loads((tmp_path / "spoken_digits.json").read_text())["seeds"] == found["seeds"]
    assert (tmp_path / "spoken_digits.png").is_file()
    assert len(list(tmp_path.glob("spoken_digits_*.wav"))) == 3


def test_a_reader_is_its_seeds():
    rng = np.random.default_rng(0)
    pictures = rng.integers(0, 255, (12, 64, 64, 3), np.uint8)
    told = [0, 1] * 6, ["a", "b", "b"] * 4
    first, again, other = (trained_reader(pictures, *told, 1, seed)(pictures) for seed in (0, 0, 1))
    assert all(map(np.array_equal, first, again))
    assert not all(map(np.array_equal, first, other))


def test_varied_keeps_silence_and_range():
    x = np.zeros((3, 64, 64, 1), np.float32)
    x[:, 10:50, 3:20] = 0.5
    made = varied(x, np.random.default_rng(0))
    assert made.shape == x.shape and made.min() >= 0 and made.max() <= 1
    assert made[made > 0.2].size > 0.5 * x[x > 0].size


def test_distances_are_root_mean_squares():
    pictures = np.zeros((3, 64, 64, 3), np.uint8)
    pictures[1], pictures[2] = 30, 200
    assert distance_within(pictures, np.array(["a", "a", "b"])) == pytest.approx(30)
    assert nearest(pictures[1:2], pictures[[0, 2]]) == pytest.approx(30, rel=1e-3)
