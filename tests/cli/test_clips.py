"""The command makes clips: files with settings from which the same is made again."""

import diffusers
import pytest
import torch
from PIL import Image

from sdjax import cli
from sdjax.pipeline.results.notes import read_settings
from tests.models.peers import randomised
from tests.pipeline import peers

SIZE = ["--height", "16", "--width", "16", "--steps", "2"]


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """(a model, its motion modules)."""
    folder = peers.make("sd1", tmp_path_factory.mktemp("model"))
    config = peers.load("sd1", folder).unet.config
    torch.manual_seed(0)
    adapter = diffusers.MotionAdapter(
        config.block_out_channels, config.layers_per_block, motion_num_attention_heads=4,
        motion_norm_num_groups=config.norm_num_groups, motion_max_seq_length=6,
    )  # fmt: skip
    motion = tmp_path_factory.mktemp("motion")
    randomised(adapter).save_pretrained(motion)
    return folder, motion


def test_clips_are_made_and_made_again(folders, tmp_path, capsys):
    model, motion = map(str, folders)
    given = ["sample", "--prompt", peers.PROMPTS[0], "--model", model, "--motion", motion]
    given += ["--frames", "3", "--fps", "4", *SIZE]
    assert cli.main([*given, "--out", str(tmp_path / "a")]) == 0
    path = tmp_path / "a" / "00000.gif"
    settings, _ = read_settings(path)
    assert settings["frames"] == 3 and settings["motion"] == motion and settings["fps"] == 4
    with Image.open(path) as clip:
        assert clip.n_frames == 3 and clip.info["duration"] == 250
    assert cli.main(["sample", "--like", str(path), "--out", str(tmp_path / "b")]) == 0
    again = tmp_path / "b" / "00000.gif"
    assert read_settings(again) == (settings, {})
    with Image.open(path) as clip, Image.open(again) as other:
        for i in range(3):
            clip.seek(i)
            other.seek(i)
            assert clip.convert("RGB").tobytes() == other.convert("RGB").tobytes()
    capsys.readouterr()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--frames", "2"], "frames is for a model with motion modules"),
        (["--motion", "x"], "--motion is for clips: give --frames too"),
        (["--motion-like", "authors", "--frames", "2"], "--motion-like is for motion modules"),
        (["--fps", "3"], "--fps is for clips: give --frames too"),
        (["--frames", "2", "--format", "png"], "--format of clips is one of gif, webp, mp4, got png"),
        (["--format", "gif"], "--format of pictures is one of png, webp, jpeg, got gif"),
    ],
)
def test_what_does_not_fit_is_refused(folders, tmp_path, capsys, options, message):
    given = ["sample", "--prompt", "x", "--model", str(folders[0]), *SIZE]
    assert cli.main([*given, *options, "--out", str(tmp_path)]) == 2
    assert message in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_a_picture_is_moved_and_moved_again(tmp_path, capsys):
    from tests.pipeline.test_moved_pictures import whole

    whole().save_pretrained(tmp_path / "svd")
    Image.new("RGB", (16, 16), (200, 30, 60)).save(tmp_path / "start.png")
    given = ["sample", "--model", str(tmp_path / "svd"), "--image", str(tmp_path / "start.png")]
    given += ["--motion-bucket", "30", "--fps", "4", *SIZE]
    assert cli.main([*given, "--out", str(tmp_path / "a")]) == 0
    path = tmp_path / "a" / "00000.gif"
    settings, _ = read_settings(path)
    assert settings["motion_bucket"] == 30 and settings["fps"] == 4
    assert settings["guidance_scale"] == 3 and settings["steps"] == 2
    with Image.open(path) as clip:
        assert clip.n_frames == 3 and clip.info["duration"] == 250
    assert cli.main(["sample", "--like", str(path), "--out", str(tmp_path / "b")]) == 0
    assert read_settings(tmp_path / "b" / "00000.gif") == (settings, {})
    capsys.readouterr()
    assert cli.main(["sample", "--model", str(tmp_path / "svd"), "--frames", "2"]) == 2
    assert "needs image=: image is missing" in capsys.readouterr().err
    assert cli.main(["sample", "--steps", "2"]) == 2
    assert "--prompt is missing: say what to draw, in quotes" in capsys.readouterr().err
