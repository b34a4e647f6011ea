"""Files of clips: frames, speed and settings come back."""

import sys

import numpy as np
import pytest
from PIL import Image
from PIL.PngImagePlugin import PngInfo

import sdjax
from sdjax.pipeline.results import movies, notes
from sdjax.pipeline.results.pictures import PictureFolder

FRAMES = [Image.new("RGB", (17, 12), (60 * i, 200 - 40 * i, 128)) for i in range(4)]
SETTINGS = {"prompt": "a „cat“, 猫: {walking}", "seed": 7, "frames": 4, "guidance_scale": 5.0}


@pytest.mark.parametrize("kind", notes.CLIPS)
def test_frames_speed_and_settings_come_back(tmp_path, kind):
    folder = PictureFolder(tmp_path, kind)
    path = folder.save(FRAMES, SETTINGS, "parameters", fps=5)
    assert path.name == f"00000.{kind}" == next(tmp_path.iterdir()).name
    assert notes.read_settings(path) == (SETTINGS, {})
    if kind == "mp4":
        import imageio_ffmpeg

        reader = imageio_ffmpeg.read_frames(str(path))
        meta = next(reader)
        assert meta["fps"] == 5 and meta["size"] == (18, 12)
        shown = [np.frombuffer(frame, np.uint8).reshape(12, 18, 3)[:, :17] for frame in reader]
    else:
        with Image.open(path) as clip:
            assert clip.n_frames == 4 and clip.info["loop"] == 0
            shown = []
            for i in range(4):
                clip.seek(i)
                shown.append(np.asarray(clip.convert("RGB")))
            assert clip.info["duration"] == 200
    for made, frame in zip(shown, FRAMES, strict=True):
        assert np.abs(made - np.asarray(frame, float)).mean() < 6
    assert PictureFolder(tmp_path, kind).save(FRAMES, {}).name == f"00001.{kind}"


def test_a_movie_that_cannot_be_written_is_told(tmp_path):
    with pytest.raises(OSError, match="No such file or directory"):
        movies.write_mp4(tmp_path / "none" / "a.mp4", FRAMES, 8, "")


def test_a_comment_of_another_program_is_no_setting(tmp_path):
    text = PngInfo()
    text.add_text("comment", "made by hand")
    FRAMES[0].save(tmp_path / "a.png", pnginfo=text)
    with pytest.raises(sdjax.SdjaxError, match="holds no settings"):
        notes.read_settings(tmp_path / "a.png")


def test_without_the_package_mp4_is_refused(monkeypatch):
    monkeypatch.setitem(sys.modules, "imageio_ffmpeg", None)
    with pytest.raises(sdjax.SdjaxError, match=r"mp4 needs imageio-ffmpeg: `pip install"):
        movies.check_there()


def test_a_movie_without_settings_is_told(tmp_path):
    movies.write_mp4(tmp_path / "a.mp4", FRAMES, 8, "no settings")
    with pytest.raises(sdjax.SdjaxError, match="it holds no settings"):
        notes.read_settings(tmp_path / "a.mp4")
