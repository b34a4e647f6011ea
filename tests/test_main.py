"""The command line in this process: what it writes, and how it refuses."""

import glob
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import main
import sdjax.training
from sdjax import cli, parallel
from sdjax.cli import COMMANDS
import sdjax
from sdjax.weights.folder import write_json
from tests.weights.small import random_pipeline

FAST = ["--steps", "2"]


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    folder = tmp_path_factory.mktemp("model")
    random_pipeline().save_pretrained(folder)
    return str(folder)


def refusal(capsys, *arguments):
    """The one line that a refused command prints."""
    assert main.main(list(arguments)) == 2
    printed = capsys.readouterr()
    assert printed.out == "" and printed.err.count("\n") == 1
    return printed.err


def test_sample_writes_numbered_pictures_and_a_sheet(model, tmp_path, capsys):
    command = ["sample", "--prompt", "red apple", "rocket", "--model", model, *FAST]
    command += ["--out", str(tmp_path / "pictures")]
    assert main.main(command) == 0
    names = [f"0000{i}.png" for i in range(4)]
    assert main.main([*command, "--seed", "5"]) == 0
    found = sorted(path.name for path in (tmp_path / "pictures").iterdir())
    assert found == sorted([*names, "00000-sheet.png", "00002-sheet.png"])
    assert "00002-sheet.png" in capsys.readouterr().out
    pictures = [Image.open(tmp_path / "pictures" / name) for name in names]
    assert all(picture.size == (16, 16) for picture in pictures)
    assert pictures[3].text["prompt"] == "rocket" and pictures[3].text["seed"] == "6"
    assert np.any(np.asarray(pictures[0]) != np.asarray(pictures[2]))


def test_batch_size_changes_nothing_but_the_batches(model, tmp_path):
    command = ["sample", "--prompt", "rocket", "--count", "3", "--model", model, *FAST]
    assert main.main([*command, "--out", str(tmp_path / "one")]) == 0
    assert main.main([*command, "--batch-size", "2", "--out", str(tmp_path / "two")]) == 0
    for i in range(3):
        one, two = (
            np.asarray(Image.open(tmp_path / folder / f"0000{i}.png"), np.int16)
            for folder in ("one", "two")
        )
        assert np.abs(one - two).max() <= 1


def test_sample_refuses_in_one_line(model, tmp_path, capsys):
    out = ["--out", str(tmp_path / "out")]
    assert "no such model folder" in refusal(
        capsys, "sample", "--prompt", "a", "--model", str(tmp_path / "absent"), *out
    )
    start = ["sample", "--prompt", "a", "--model", model]
    assert "multiple of 2" in refusal(capsys, *start, "--height", "15", *out)
    assert "batch_size" in refusal(capsys, *start, "--batch-size", "0", *out)
    assert "sampler" in refusal(capsys, *start, "--sampler", "eulr", *out)
    assert "--prompt is missing" in refusal(capsys, "sample", "--model", model, *out, "--prompt")
    # As Python gives an argument that is no UTF-8.
    invalid = refusal(capsys, "sample", "--prompt", "a \udcff", "--model", model, *out)
    assert "found the byte 0xFF after 'a '" in invalid
    (tmp_path / "file").touch()
    assert "cannot write" in refusal(capsys, *start, "--out", str(tmp_path / "file"))
    assert "guidance_scale" in refusal(capsys, *start, "--guidance-scale", "nan", *out)
    pixels = tmp_path / "pixels"
    shutil.copytree(Path(model) / "unet", pixels / "unet")
    write_json(pixels / "scheduler" / "scheduler_config.json", {"_class_name": "DDIMScheduler"})
    write_json(pixels / "model_index.json", {"unet": ["diffusers", "UNet2DConditionModel"]})
    line = refusal(capsys, "sample", "--prompt", "a", "--model", str(pixels), *out)
    assert "holds unet: expected a U-Net, an autoencoder and a text encoder" in line
    assert not (tmp_path / "out").exists()


def test_every_sampler_draws_where_no_noise_is_asked_for(model, tmp_path, capsys):
    command = ["sample", "--prompt", "a", "--model", model, *FAST, "--sampler", "dpmpp_sde"]
    command += ["--out", str(tmp_path / "out")]
    assert "leave noise out" in refusal(capsys, *command, "--noise", "torch")
    assert main.main(command) == 0


def test_evaluate_looks_at_the_folder_before_it_loads_the_model(tmp_path, capsys):
    (tmp_path / "file").touch()
    start = ["evaluate", "shapes-accuracy", "--model", str(tmp_path / "absent"), "--out"]
    assert "cannot write" in refusal(capsys, *start, str(tmp_path / "file"))
    assert "no such model folder" in refusal(capsys, *start, str(tmp_path / "out"))
    assert not (tmp_path / "out").exists()


def test_sample_tells_the_words_that_are_cut_off(model, tmp_path, capsys):
    prompt = "red apple " * 8 + "rocket"
    assert main.main(["sample", "--prompt", prompt, "--weighting", "none", "--model", model,
                      *FAST, "--out", str(tmp_path)]) == 0  # fmt: skip
    (line,) = {line for line in capsys.readouterr().err.splitlines() if "warning" in line}
    assert line.startswith("warning: only 14 tokens of a prompt are read; cut off: ")
    assert line.endswith("rocket '") or line.endswith("rocket'")


def test_unknown_commands_and_options_suggest_the_near_one(capsys):
    assert "did you mean sample?" in refusal(capsys, "smaple")
    assert "did you mean nearest-neighbour?" in refusal(capsys, "evaluate", "nearest-neighbor")
    assert "did you mean --config?" in refusal(capsys, "train", "--confg", "a.py", "--workdir", "b")
    assert "did you mean --prompt?" in refusal(capsys, "sample", "--promt=a")
    with pytest.raises(SystemExit) as stop:
        main.main(["sample", "--prompt", "a", "--stepz", "3"])
    assert stop.value.code == 2 and "--steps" in capsys.readouterr().err


def test_train_names_the_missing_config(tmp_path, capsys):
    command = ["train", "--config", str(tmp_path / "none.py")]
    for rest in (["--workdir", str(tmp_path)], ["--help"]):
        assert "no recipe" in refusal(capsys, *command, *rest)


def test_train_stops_goes_on_and_refuses(tmp_path, capsys, monkeypatch):
    (tmp_path / "small.py").write_text("from tests.training.small import PIXELS as config")
    command = ["train", "--config", str(tmp_path / "small.py"), "--workdir"]
    folder, sizes = tmp_path / "run", []
    monkeypatch.setattr(parallel, "use_cpu_devices", lambda batch_sizes: sizes.append(batch_sizes))
    assert main.main([*command, str(folder), "--diffusion.max-minutes", "1e-9"]) == 3
    assert sizes == [[4]]  # so that no more devices are made than share a batch evenly
    assert "saved step 1 of 4; the same command goes on" in capsys.readouterr().out
    other = ["--diffusion.unet.layers-per-block", "2"]
    assert "which this configuration needs" in refusal(capsys, *command, str(folder), *other)
    (tmp_path / "file").touch()
    assert "cannot write to the folder" in refusal(capsys, *command, str(tmp_path / "file"))
    with monkeypatch.context() as patch:
        patch.setattr(sdjax.training, "train", interrupt)
        assert main.main([*command, str(folder)]) == 130
    assert capsys.readouterr().err == "interrupted\n"
    assert main.main([*command, str(folder)]) == 0
    assert (folder / "model" / "model_index.json").is_file()


def interrupt(*arguments):
    raise KeyboardInterrupt


@pytest.mark.parametrize("command", [[], ["--help"]])
def test_usage(command, capsys):
    assert main.main(command) == 0
    printed = capsys.readouterr().out
    assert all(f"  {name} " in printed for name in COMMANDS)


@pytest.mark.parametrize("command", ["sample", "train", "evaluate"])
def test_help_has_examples(command, capsys):
    with pytest.raises(SystemExit) as stop:
        main.main([command, "--help"])
    assert stop.value.code == 0
    assert f"python main.py {command} " in capsys.readouterr().out


@pytest.mark.parametrize(
    "kind", ["shapes-accuracy", "similarity", "nearest-neighbour", "reconstruction"]
)
def test_every_evaluation_has_help(kind, capsys):
    with pytest.raises(SystemExit) as stop:
        main.main(["evaluate", kind, "--help"])
    assert stop.value.code == 0 and "--out" in capsys.readouterr().out


def test_a_wheel_carries_every_asset():
    """The patterns of pyproject.toml, matched as setuptools matches them."""
    package = Path(sdjax.__file__).parent
    settings = tomllib.loads((package.parent / "pyproject.toml").read_text())
    patterns = settings["tool"]["setuptools"]["package-data"]["sdjax"]
    carried = {f for p in patterns for f in glob.glob(str(package / p), recursive=True)}
    files = {str(path) for path in (package / "assets").rglob("*") if path.is_file()}
    assert len(files) > 10 and files <= carried


def test_make_names_the_python_that_it_needs(tmp_path):
    old = tmp_path / "old"
    code = 'import sys; sys.version_info = (3, 9, 1); exec(sys.argv[1])'
    old.write_text(f"#!/bin/sh\nexec '{sys.executable}' -c '{code}' \"$2\"\n")
    old.chmod(0o755)
    makefile = Path(main.__file__).with_name("Makefile")
    made = subprocess.run(
        ["make", "-f", makefile, "-C", tmp_path, ".venv/bin/python", f"PYTHON={old}"],
        capture_output=True, text=True,
    )  # fmt: skip
    assert made.returncode == 2 and not (tmp_path / ".venv").exists()
    assert f"needs Python 3.11 or newer, {old} is 3.9: name another" in made.stderr


def test_the_model_of_the_project_is_small_and_whole():
    assert sdjax.EMOJI.joinpath("model_index.json").is_file()
    size = sum(file.stat().st_size for file in sdjax.EMOJI.rglob("*") if file.is_file())
    assert 1_000_000 < size <= 12_000_000  # bytes


@pytest.mark.parametrize("start", [["main.py"], ["-m", "sdjax"]])
def test_every_way_to_start_is_the_same_command_line(start):
    root = Path(main.__file__).parent
    made = subprocess.Popen([sys.executable, *start, "--help"], cwd=root, text=True,
                            stdout=subprocess.PIPE, stderr=subprocess.PIPE)  # fmt: skip
    made.stdout.close()  # as `| head` does where it has seen enough
    assert made.stderr.read() == "" and made.wait() == 1
    asked = subprocess.run([sys.executable, *start, "--version"], cwd=root, text=True,
                           capture_output=True)  # fmt: skip
    assert asked.stdout == f"sdjax {sdjax.__version__}\n" and asked.returncode == 0


def test_help_names_the_program_as_it_was_called(capsys):
    for program in ("sdjax", "python -m sdjax"):
        assert cli.main(["--help"], program) == 0
        assert f'  {program} sample --prompt "' in capsys.readouterr().out
        with pytest.raises(SystemExit):
            cli.main(["convert", "--help"], program)
        printed = capsys.readouterr().out
        assert printed.startswith(f"usage: {program} convert ")
        assert f"\n{program} convert model.ckpt folder\n" in printed
