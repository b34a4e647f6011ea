"""Spectrograms, their inverse and files of sound, against librosa and closed forms."""

import numpy as np
import pytest

from sdjax.errors import SdjaxError
from sdjax.sound import Mel, griffin_lim, istft, read_sound, stft, write_sound
from sdjax.sound.files import read_notes, resampled

librosa = pytest.importorskip("librosa")
RATE, N_FFT, HOP, WINDOW = 8_000, 256, 64, 200
SPEECH = Mel(RATE, N_FFT, HOP, WINDOW, bins=24, high=4_000)


@pytest.fixture(scope="module")
def sound():
    """Half a second of a rising tone in noise."""
    t = np.arange(RATE // 2) / RATE
    noise = np.random.default_rng(0).normal(size=t.shape)
    return np.float32(0.5 * np.sin(2 * np.pi * (300 + 900 * t) * t) + 0.02 * noise)


def of_librosa(sound):
    return librosa.stft(
        np.float64(sound), n_fft=N_FFT, hop_length=HOP, win_length=WINDOW, pad_mode="reflect"
    ).T


def test_stft_is_librosas_and_is_undone(sound):
    ours, theirs = np.asarray(stft(sound, N_FFT, HOP, WINDOW)), of_librosa(sound)
    assert np.abs(ours - theirs).max() < 1e-5 * np.abs(theirs).max()
    back = istft(ours, N_FFT, HOP, WINDOW, len(sound))
    assert np.abs(np.asarray(back) - sound)[: -N_FFT].max() < 1e-5


@pytest.mark.parametrize(("scale", "norm"), [("slaney", True), ("htk", False)])
def test_mel_filters_are_librosas(scale, norm):
    mel = Mel(16_000, 1024, 160, 1024, 64, 20, 7_600, scale, norm)
    theirs = librosa.filters.mel(
        sr=16_000, n_fft=1024, n_mels=64, fmin=20, fmax=7_600, htk=scale == "htk",
        norm="slaney" if norm else None,
    ).T  # fmt: skip
    assert np.abs(mel.filters - theirs).max() < 1e-6


def test_mel_spectrogram_is_librosas(sound):
    theirs = librosa.feature.melspectrogram(
        y=np.float64(sound), sr=RATE, n_fft=N_FFT, hop_length=HOP, win_length=WINDOW, n_mels=24,
        fmax=4_000, power=1, pad_mode="reflect",
    ).T  # fmt: skip
    assert np.abs(np.asarray(SPEECH.spectrogram(sound)) - theirs).max() < 1e-5 * theirs.max()


def test_magnitudes_have_the_mel_spectrogram_that_they_are_of(sound):
    mel = np.asarray(SPEECH.spectrogram(sound))
    found = np.asarray(SPEECH.magnitudes(mel))
    assert found.min() >= 0
    assert np.linalg.norm(found @ SPEECH.filters - mel) < 0.02 * np.linalg.norm(mel)


def test_griffin_lim_is_librosas(sound):
    frames = of_librosa(sound)
    theirs = librosa.griffinlim(
        np.abs(frames.T), n_iter=8, hop_length=HOP, win_length=WINDOW, n_fft=N_FFT, momentum=0.99,
        init=None, pad_mode="reflect",
    )  # fmt: skip
    ours = np.asarray(griffin_lim(np.float32(np.abs(frames)), N_FFT, HOP, WINDOW, 8))
    assert ours.shape == theirs.shape
    # The phases of what is nearly nothing are rounding's, more so with each round.
    assert np.linalg.norm(ours - theirs) < 1e-3 * np.linalg.norm(theirs)


def test_sound_of_a_mel_spectrogram_has_it_again(sound):
    mel = np.asarray(SPEECH.spectrogram(sound))
    again = np.asarray(SPEECH.spectrogram(SPEECH.sound(mel)))
    assert np.linalg.norm(again - mel[: len(again)]) < 0.15 * np.linalg.norm(mel)


@pytest.mark.parametrize("kind", ["wav", "flac"])
def test_files_keep_sound_and_notes(sound, tmp_path, kind):
    path, notes = tmp_path / f"a.{kind}", {"prompt": "sieben – „sechs“", "seed": 7}
    write_sound(path, sound, RATE, notes)
    back, rate = read_sound(path)
    assert rate == RATE and np.abs(back - sound).max() < 1e-4
    assert read_notes(path) == notes
    write_sound(path, 4 * sound, RATE)  # quieter as a whole
    assert np.abs(read_sound(path)[0]).max() == pytest.approx(1, abs=1e-3)
    with pytest.raises(SdjaxError, match="no settings"):
        read_notes(path)


def test_another_rate_is_resampled(tmp_path):
    def tone(rate):
        return np.float32(0.5 * np.sin(2 * np.pi * 440 * np.arange(rate // 4) / rate))

    write_sound(tmp_path / "a.wav", tone(44_100), 44_100)
    back, rate = read_sound(tmp_path / "a.wav", 16_000)
    assert rate == 16_000 and len(back) == 4_000
    assert np.abs(back - tone(16_000))[200:-200].max() < 1e-3
    high = np.float32(np.sin(2 * np.pi * 6_000 * np.arange(4_000) / 16_000))
    assert np.abs(resampled(high, 16_000, 8_000))[200:-200].max() < 1e-2  # what it cannot hold


@pytest.mark.parametrize("dtype", ["uint8", "int16", "int32", "float32"])
def test_samples_of_any_kind_and_channels(tmp_path, dtype, sound):
    from scipy.io import wavfile

    kind = np.dtype(dtype)
    scaled = {"u": sound * 127 + 128, "i": sound * float(np.iinfo("int32").max) * 0.9}
    stored = scaled.get(kind.kind, sound)
    if dtype == "int16":
        stored = sound * 32767
    wavfile.write(tmp_path / "a.wav", RATE, np.stack([stored, stored], 1).astype(kind))
    back, _ = read_sound(tmp_path / "a.wav")
    wanted = sound * (0.9 if dtype == "int32" else 1)
    assert back.shape == sound.shape and np.abs(back - wanted).max() < 2 / 127


def test_what_is_no_sound_is_one_line(tmp_path, sound):
    write_sound(tmp_path / "good.wav", sound, RATE)
    data = (tmp_path / "good.wav").read_bytes()
    (tmp_path / "cut.wav").write_bytes(data[: len(data) // 2])
    (tmp_path / "text.wav").write_text("hello")
    write_sound(tmp_path / "none.wav", np.zeros(0), RATE)
    for name, said in (("cut", "broken"), ("text", "no file of sound"), ("none", "no samples"),
                       ("absent", "no file")):  # fmt: skip
        with pytest.raises(SdjaxError, match=said) as error:
            read_sound(tmp_path / f"{name}.wav")
        assert "\n" not in str(error.value)
    with pytest.raises(SdjaxError, match="wav or flac"):
        write_sound(tmp_path / "a.mp3", sound, RATE)
    with pytest.raises(SdjaxError, match="half a frame"):
        stft(sound[:100], N_FFT, HOP)
    with pytest.raises(SdjaxError, match="half the rate"):
        Mel(rate=8_000)
