"""Pictures that are spectrograms, and recordings as pictures."""

import dataclasses

import numpy as np
import pytest
from PIL import Image

from sdjax import cli
from sdjax.data import DataConfig, open_source
from sdjax.data.sounds import SoundFolder
from sdjax.errors import SdjaxError
from sdjax.sound import LAYOUTS, read_sound, write_sound

SPEECH, RIFFUSION = LAYOUTS["speech"], LAYOUTS["riffusion"]


def word(rate=8_000, seconds=0.5, pitch=400):
    """A falling tone with overtones that fades."""
    t = np.arange(int(rate * seconds)) / rate
    return np.float32(sum(np.sin(2 * np.pi * k * (pitch - 80 * t) * t) / k for k in (1, 2, 3))
                      * np.exp(-3 * t))  # fmt: skip


def test_a_picture_of_speech_is_heard_and_seen_again():
    picture = SPEECH.picture(word(), 8_000)
    assert picture.shape == (64, 64, 3) and picture.dtype == np.uint8
    assert picture[:, 40:].max() == 0  # half a second of silence after the word
    low, high = picture[48:].mean(), picture[:16].mean()
    assert low > high  # low frequencies lie below
    again = SPEECH.picture(SPEECH.sound(picture).samples, 8_000)
    assert np.abs(np.float32(again) - picture).mean() < 6
    softer = SPEECH.picture(0.1 * word(), 8_000)
    assert np.abs(np.float32(softer) - picture).max() <= 1


def test_of_another_rate_it_is_nearly_the_same_picture():
    picture, other = SPEECH.picture(word(), 8_000), SPEECH.picture(word(44_100), 44_100)
    assert np.abs(np.float32(other) - picture).mean() < 2


def test_riffusions_values():
    """255 - 255 · (S / max) ** 0.25, upside down; back, a maximum of 30e6 at 16 bits."""
    assert (RIFFUSION.mel.n_fft, RIFFUSION.mel.hop, RIFFUSION.mel.window) == (17_640, 441, 4_410)
    small = dataclasses.replace(RIFFUSION, mel=dataclasses.replace(
        RIFFUSION.mel, rate=8_000, n_fft=512, hop=80, window=256, bins=32, high=4_000
    ))  # fmt: skip
    sound = word()
    found = np.asarray(small.mel.spectrogram(sound), np.float64).T
    theirs = np.uint8(np.round(255 - 255 * (found / found.max()) ** 0.25))[::-1]
    picture = small.picture(sound, 8_000)
    assert np.abs(np.int32(picture[..., 0]) - theirs).max() <= 1
    back = small.spectrogram(picture).T * 32768
    wanted = ((255 - np.float64(theirs[::-1])) / 255) ** 4 * 30e6
    assert np.abs(back - wanted).max() < 0.05 * 30e6
    assert np.corrcoef(back.ravel(), found.ravel())[0, 1] > 0.999
    with pytest.raises(SdjaxError, match="512 pixels high"):
        RIFFUSION.sound(picture)


@pytest.fixture(scope="module")
def recordings(tmp_path_factory):
    folder = tmp_path_factory.mktemp("recordings")
    for digit in (0, 7):
        for speaker in ("jackson", "theo"):
            for number in range(7):
                pitch = 200 + 60 * digit + 20 * (speaker == "theo") + number
                name = f"{digit}_{speaker}_{number}.wav"
                write_sound(folder / name, word(16_000, 0.4, pitch), 16_000)
    return folder


def test_recordings_are_a_source(recordings):
    source = open_source(DataConfig(source=f"folder:{recordings}", image_size=64))
    assert len(source) == 2 * 2 * 2
    item = source[len(source) - 1]
    assert item["caption"] == "seven by theo" and item["image"].shape == (64, 64, 3)
    kept = open_source(DataConfig(source=f"folder:{recordings}", image_size=64, split="heldout"))
    assert len(kept) == 20 and not set(map(source.name, range(8))) & set(map(kept.name, range(20)))
    assert len(SoundFolder(recordings, "all")) == 28


def test_what_is_no_recording_is_told(recordings, tmp_path):
    for name in ("12_theo_9.wav", "hello.wav"):
        write_sound(tmp_path / name, word(), 8_000)
    with pytest.raises(SdjaxError, match="7_jackson_32.wav"):
        SoundFolder(tmp_path)
    (tmp_path / "1_theo_9.wav").write_bytes(b"RIFF0000WAVEnothing")
    (tmp_path / "1_theo_8.wav").write_bytes((recordings / "0_theo_0.wav").read_bytes())
    with pytest.raises(SdjaxError, match="3 of 4 items are broken") as error:
        open_source(DataConfig(source=f"folder:{tmp_path}", image_size=64)).check()
    for said in ("hello.wav", "12_theo_9.wav", "1_theo_9.wav"):
        assert said in str(error.value)
    with pytest.raises(SdjaxError, match="splits train, heldout, all"):
        SoundFolder(recordings, "test")


def test_the_command_draws_both_ways(recordings, tmp_path, capsys):
    source, picture, sound = recordings / "7_theo_6.wav", tmp_path / "a.png", tmp_path / "a.wav"
    options = ["--layout", "speech"]
    assert cli.main(["draw", "spectrogram", str(source), str(picture), *options]) == 0
    assert Image.open(picture).size == (64, 64)
    assert cli.main(["draw", "sound", str(picture), str(sound), *options]) == 0
    assert read_sound(sound)[1] == 8_000
    assert cli.main(["draw", "sound", str(picture), str(tmp_path / "b.wav")]) != 0
    assert "512 pixels high" in capsys.readouterr().err


def test_pictures_of_another_height_have_no_sound(tmp_path, capsys):
    given = ["sample", "--prompt", "cat", "--sound", "riffusion", "--out", str(tmp_path)]
    assert cli.main(given) != 0
    assert "512 pixels high, these are 64" in capsys.readouterr().err
