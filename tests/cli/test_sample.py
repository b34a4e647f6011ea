"""`sample` and `evaluate`: what is refused before a model is read, and pictures that are not lost."""

import errno
import re
import shlex
import warnings
from pathlib import Path

import jax
import numpy as np
import pytest
from PIL import Image
from safetensors.numpy import save_file

import main
import sdjax
from sdjax import training
from sdjax.cli import captions, common, convert, evaluate, sample, train
from sdjax.pipeline import run, stable_diffusion
from sdjax.pipeline.model.captions import read_captions, warn_of_unseen
from sdjax.pipeline.results import pictures
from sdjax.pipeline.results.pictures import PictureFolder
from tests.weights.small import random_pipeline

ROOT = Path(main.__file__).parent


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    folder = tmp_path_factory.mktemp("model")
    pipeline = random_pipeline()
    pipeline.captions = ("red apple", "rocket")
    pipeline.save_pretrained(folder)
    pipeline.save_single_file(folder / "single.safetensors")
    return folder


def refusal(capsys, *arguments):
    """The one line that a refused command prints."""
    assert main.main(["sample", *arguments]) == 2
    printed = capsys.readouterr()
    assert printed.out == "" and printed.err.count("\n") == 1
    return printed.err


@pytest.mark.parametrize(
    ("word", "ours"),
    [
        ("--cfg-scale", "--guidance-scale"), ("--cfg_scale=3", "--guidance-scale"),
        ("--num-inference-steps", "--steps"), ("--ddim_steps", "--steps"), ("--H", "--height"),
        ("-W", "--width"), ("--n_iter", "--count"), ("--outdir", "--out"), ("--ckpt", "--model"),
        ("--scale", "--guidance-scale"), ("--sampler-name", "--sampler"),
    ],
)  # fmt: skip
def test_options_of_other_programs_are_told_by_ours(capsys, word, ours):
    line = refusal(capsys, "--prompt", "red apple", word, "3")
    assert line == f"error: no option {word.split('=')[0]}: it is {ours} here\n"


@pytest.mark.parametrize(
    ("command", "ours"),
    [
        ("convert in out --torch-dtype float16", "--dtype"),
        ("convert in out --half", "--dtype float16"),
        ("captions --ckpt folder", "--model"),
        ("evaluate shapes-accuracy --num-inference-steps 3", "--generation.steps"),
        ("evaluate shapes-accuracy --steps 3", "--generation.steps"),
        ("evaluate nearest-neighbour --outdir there", "--out"),
        ("train --config shapes --output_dir runs", "--workdir"),
        ("train --config shapes --workdir runs --lr 1", "--diffusion.optimizer.learning-rate"),
        ("train --config shapes --workdir runs --train_data_dir=a",
         "--data.source folder:PICTURES"),
    ],
)  # fmt: skip
def test_other_commands_tell_foreign_options_too(capsys, command, ours):
    assert main.main(command.split()) == 2
    printed = capsys.readouterr()
    assert printed.err.startswith("error: no option --") and printed.out == ""
    assert printed.err.endswith(f": it is {ours} here\n")


def test_foreign_options_of_training_are_options_of_recipes():
    """Each leads to a field of a recipe for pictures of prompts, from noise or on top of a model."""
    recipes = [training.load_config(name) for name in ("shapes", "dreambooth")]
    for name in train.WORDS.values():
        if name not in ("workdir", "config"):
            values = recipes
            for field in name.split()[0].split("."):
                values = [getattr(value, field) for value in values if hasattr(value, field)]
            assert values, name


@pytest.mark.parametrize(
    "command",
    [
        "sample --prompt a --steps 3 --seed 1 --steps=4",
        "sample --prompt a --guidance-scale 3 --guidance_scale 3",
        "convert in out --dtype float16 --dtype float16",
        "captions --model a --model b",
        "evaluate shapes-accuracy --model a --model b",
        "train --config shapes --workdir a --workdir b",
        "train --config shapes --workdir a --diffusion.steps 3 --diffusion.steps 4",
        "train --config shapes --workdir a --diffusion.remat --diffusion.no-remat",
    ],
)
def test_an_option_given_twice_is_refused(capsys, command):
    assert main.main(command.split()) == 2
    printed = capsys.readouterr()
    assert re.fullmatch(r"error: --[a-z.-]+ is given twice: give it once\n", printed.err)


def test_convert_looks_at_where_it_writes_before_it_reads(capsys):
    assert main.main(["convert", "absent/model/of/nobody", "gs://bucket/model"]) == 2
    assert "gs:// is not supported" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--sampler", "eulr"], "unknown sampler 'eulr'"),
        (["--sampler", "euler", "--eta", "0.5"], "sampler euler has no option 'eta'"),
        (["--guidance-rescale", "5"], "guidance_rescale must lie in 0 … 1, got 5"),
        (["--guidance-scale", "nan"], "guidance_scale must be a finite number"),
        (["--count", "0"], "count must be at least 1"),
        (["--seed", "-2"], "a seed must lie in"),
        (["--out", "gs://bucket/pictures"], "gs://"),
    ],
)
def test_what_needs_no_model_is_checked_first(capsys, options, message):
    start = ["--prompt", "red apple", "--model", "absent/model/of/nobody"]
    assert message in refusal(capsys, *start, *options)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--height", "15"], "height must be a multiple of 2, got 15"),
        (["--steps", "2000"], "steps"),
        (["--sampler", "edm_heun"], "does not fit"),
        (["--sampler", "ddim", "--eta", "2"], "eta must be between 0 and 1"),
        (["--clip-skip", "9"], "clip_skip must be less than the text encoder's 2 layers, got 9"),
        (["--sampler", "dpmpp_sde", "--noise", "torch"], "leave noise out"),
        (["--sigmas", "carras"], "has no option 'sigmas'"),
    ],
)
def test_what_depends_on_the_model_is_checked_before_its_weights_are_read(
    model, capsys, monkeypatch, options, message
):
    monkeypatch.setattr(stable_diffusion, "load", None)
    start = ["--prompt", "red apple", "--model", str(model)]
    assert message in refusal(capsys, *start, *options)
    assert message in refusal(
        capsys, *start[:2], "--model", str(model / "single.safetensors"), "--config", str(model),
        *options,
    )  # fmt: skip


def test_a_prompt_may_be_given_several_times():
    given = ["--prompt", "a", "--steps", "2", "--prompt=b", "--prompt", "c", "d", "--count", "1"]
    assert common.joined(given, "--prompt") == [
        "--prompt", "a", "b", "c", "d", "--steps", "2", "--count", "1",
    ]  # fmt: skip
    once = ["--steps", "2", "--prompt", "a", "b"]
    assert common.joined(once, "--prompt") == once


def test_a_drawn_seed_is_told_and_a_word_never_seen_too(model, tmp_path, capsys):
    """With a single file of a model of one's own, and two prompts."""
    command = ["sample", "--model", str(model / "single.safetensors"), "--config", str(model)]
    command += ["--prompt", "a blue whale", "--prompt", "red apple", "--steps", "2", "--seed"]
    assert main.main([*command, "-1", "--out", str(tmp_path / "drawn")]) == 0
    printed = capsys.readouterr()
    assert "warning: the model was trained on no word of 'a blue whale'" in printed.err
    assert "red apple'" not in printed.err
    seed = re.search(r"2 pictures from seed (\d+) on", printed.out)[1]
    drawn = [Image.open(tmp_path / "drawn" / f"0000{i}.png") for i in range(2)]
    assert [picture.text["seed"] for picture in drawn] == [seed, str(int(seed) + 1)]
    assert [picture.text["prompt"] for picture in drawn] == ["a blue whale", "red apple"]
    assert main.main([*command, seed, "--out", str(tmp_path / "again")]) == 0
    again = [Image.open(tmp_path / "again" / f"0000{i}.png") for i in range(2)]
    assert [picture.tobytes() for picture in again] == [picture.tobytes() for picture in drawn]


def test_the_warning_is_about_the_line_of_the_caller(model, tmp_path):
    pipeline = sdjax.StableDiffusion.from_pretrained(model)
    with pytest.warns(UserWarning, match="no word of 'whale'") as caught:
        pipeline.generate("whale", steps=2, height=8, width=8, output="latents")
    assert caught[0].filename == __file__
    # Neither of a word that was learned, nor where a LoRA may know more.
    width = pipeline.text_encoders[0].config.hidden_size
    save_file({"<whale>": np.zeros((1, width), np.float32)}, tmp_path / "word.safetensors")
    pipeline.load_textual_inversion(tmp_path / "word.safetensors")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        pipeline.generate("<whale>", steps=2, height=8, width=8, output="latents")


def test_an_interrupted_command_keeps_what_is_finished(model, tmp_path, capsys, monkeypatch):
    original, batches = run.batch, []

    def interrupted(*arguments):
        batches.append(arguments)
        if len(batches) == 3:
            raise KeyboardInterrupt
        return original(*arguments)

    monkeypatch.setattr(run, "batch", interrupted)
    command = ["sample", "--model", str(model), "--prompt", "rocket", "--count", "8"]
    command += ["--batch-size", "2", "--steps", "2", "--out", str(tmp_path)]
    assert main.main(command) == 130
    printed = capsys.readouterr()
    sheet = tmp_path / "00000-sheet.png"
    assert printed.out == f"4 of 8 pictures are in {tmp_path}\n{sheet}\n"
    assert printed.err == "interrupted\n"
    assert Image.open(sheet).width > 2 * 192 - 2
    found = sorted(set(tmp_path.iterdir()) - {sheet})
    assert [path.name for path in found] == [f"0000{i}.png" for i in range(4)]
    for i, path in enumerate(found):
        picture = Image.open(path)
        picture.load()
        assert picture.text["seed"] == str(i)


def test_a_full_disk_is_told_in_one_line_and_leaves_no_part(tmp_path, monkeypatch):
    folder, picture = PictureFolder(tmp_path), Image.new("RGB", (4, 4))
    folder.save(picture, {})

    def full(self, file, *arguments, **options):
        file.write(b"half a pict")
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(Image.Image, "save", full)
        with pytest.raises(sdjax.SdjaxError, match="cannot write .*: No space left on device"):
            folder.save(picture, {})
    with monkeypatch.context() as patch:
        patch.setattr(pictures.Path, "replace", lambda *paths: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            folder.save(picture, {})
    assert [path.name for path in tmp_path.iterdir()] == ["00000.png"]


def test_two_that_write_into_one_folder_lose_nothing(tmp_path):
    folders = [PictureFolder(tmp_path), PictureFolder(tmp_path)]
    written = [
        folder.save(Image.new("L", (1, 1), 10 * i + k), {"who": k})
        for i in range(3)
        for k, folder in enumerate(folders)
    ]
    assert len(set(written)) == 6 == len(list(tmp_path.iterdir()))
    assert [Image.open(path).getpixel((0, 0)) for path in written] == [0, 1, 10, 11, 20, 21]


def test_examples_are_captions_of_the_emoji_model():
    """Of commands that sample with it: in every help, and on every page."""
    known = read_captions(sdjax.EMOJI)
    assert len(known) == len(set(known)) == 509
    texts = [page.read_text(encoding="utf-8") for page in (ROOT / "docs").glob("*.md")]
    texts += [(ROOT / "README.md").read_text(encoding="utf-8"), (ROOT / "Makefile").read_text()]
    texts += [Path(module.__file__).read_text() for module in (captions, convert, evaluate, train)]
    texts += [sample.sample.__doc__, Path(main.cli.__file__).read_text()]
    found = []
    for text in texts:
        for command in re.findall(r"sample (.*--prompt.*)$", text.replace("\\\n", ""), re.M):
            words = shlex.split(command.rstrip("',"), comments=True)
            if "--model" not in words:
                rest = words[words.index("--prompt") + 1 :]
                end = next((i for i, w in enumerate(rest) if w.startswith("--")), len(rest))
                found += rest[:end]
    # Some show what the model never saw, or the grammar, but all are of words that it did.
    unseen = {"blue heart with ribbon"}
    written = {prompt for prompt in found if re.search(r"[\[(]| AND ", prompt)}
    assert len(found) > 10 and set(found) - unseen - written <= set(known)
    words = set(re.findall("[a-z]+", " ".join(known)))
    assert set(re.findall("[a-z]+", " ".join(unseen | written))) <= words


def test_the_captions_of_a_model_are_listed(model, capsys):
    assert main.main(["captions", "SMILING", "cat"]) == 0
    assert "smiling cat with heart-eyes\n" in capsys.readouterr().out
    assert main.main(["captions", "--model", str(model)]) == 0
    assert capsys.readouterr().out == "red apple\nrocket\n"
    assert main.main(["captions", "rocket"]) == 2
    assert capsys.readouterr().err == "error: none of its 509 captions holds rocket\n"
    assert main.main(["captions", "--model", str(model / "unet")]) == 2
    assert "does not say what it was trained on" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("prompt", "told"),
    [("rocket", True), ("a rocket of the", True), ("a smiling dog", False), ("Hamburger!", False),
     ("", False), ("a", False)],
)  # fmt: skip
def test_a_prompt_without_a_known_word_is_told(prompt, told):
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        warn_of_unseen([prompt, "penguin"], read_captions(sdjax.EMOJI))
        warn_of_unseen([prompt], ())  # of a model that does not say what it saw
        warn_of_unseen(["a <rocket>"], ["penguin"], ["<rocket>"])
    assert len(caught) == told
    assert not told or f"no word of {prompt!r}" in str(caught[0].message)


def test_evaluate_checks_before_weights_are_read_too(model, tmp_path, capsys, monkeypatch):
    start = ["evaluate", "shapes-accuracy", "--out", str(tmp_path / "out"), "--model"]
    assert main.main([*start, "absent/model", "--generation.sampler", "eulr"]) == 2
    assert "unknown sampler 'eulr'" in capsys.readouterr().err
    monkeypatch.setattr(stable_diffusion, "load", None)
    single = [str(model / "single.safetensors"), "--config", str(model)]
    assert main.main([*start, *single, "--generation.steps", "2000"]) == 2
    assert "steps must be between 1 and 1000, got 2000" in capsys.readouterr().err


def test_a_model_cut_over_devices_draws_the_same(model, tmp_path, capsys):
    devices = len(jax.local_devices())
    told = refusal(capsys, "--model", str(model), "--prompt", "rocket", "--out",
                   str(tmp_path / "no"), "--placement.fsdp", str(devices + 1))
    assert f"must divide the {devices} devices" in told
    for name, option in (("copies", "1"), ("cut", "-1")):
        asked = ["--model", str(model), "--prompt", "rocket", "--steps", "2", "--out",
                 str(tmp_path / name), "--placement.fsdp", option]
        assert main.main(["sample", *asked]) == 0
    copies, cut = (np.asarray(Image.open(tmp_path / name / "00000.png"), int)
                   for name in ("copies", "cut"))
    assert np.abs(copies - cut).max() <= 1
