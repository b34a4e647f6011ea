"""Every command and every program in the documents runs, on a small random model."""

import re
import shlex
from pathlib import Path

import numpy as np
import pytest

import main
import sdjax
import sdjax.evaluation
import sdjax.training
from sdjax.weights.tensors import lazy, write_safetensors
from tests.weights.small import random_pipeline

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
BLOCK = re.compile(r"^```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def blocks(language):
    return [
        pytest.param(text, id=f"{page.stem}-{i}")
        for page in PAGES
        for i, (kind, text) in enumerate(BLOCK.findall(page.read_text(encoding="utf-8")))
        if kind == language
    ]


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    folder = tmp_path_factory.mktemp("model")
    random_pipeline().save_pretrained(folder)
    return folder


@pytest.fixture
def workplace(model, tmp_path, monkeypatch):
    """A folder like the repository, with small models under the names that the pages use."""
    (tmp_path / "configs").symlink_to(ROOT / "configs")
    for name in ("runs/emoji/model", "runs/shapes/model", "sdjax/assets/emoji"):
        (tmp_path / name).parent.mkdir(parents=True)
        (tmp_path / name).symlink_to(model)
    adapter = {"down": np.ones((2, 4, 3, 3)), "up": np.ones((16, 2, 1, 1))}
    write_safetensors(
        tmp_path / "style.safetensors",
        {f"lora_unet_conv_in.lora_{k}.weight": lazy(v) for k, v in adapter.items()},
    )
    write_safetensors(tmp_path / "cat-toy.safetensors", {"<cat-toy>": lazy(np.ones((1, 24)))})
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sdjax, "EMOJI", model)
    # A training or an evaluation is read to its last option, and not carried out.
    monkeypatch.setattr(sdjax.training, "train", lambda recipe, workdir: True)
    monkeypatch.setattr(sdjax.evaluation, "run", lambda config, load_model, model: {})
    return tmp_path


@pytest.mark.parametrize("text", blocks("python"))
def test_program(text, workplace):
    exec(compile(text, "page", "exec"), {})


@pytest.mark.parametrize("text", blocks("bash"))
def test_commands(text, workplace):
    targets = re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
    for line in text.splitlines():
        words = shlex.split(line, comments=True)
        if words[:1] == ["make"]:
            assert words[1] in targets
            continue
        if words[:2] == ["python", "-m"]:
            assert (ROOT / f"{words[2].replace('.', '/')}.py").is_file(), line
            continue
        assert words[:2] == ["python", "main.py"], f"not a command of this project: {line}"
        arguments = words[2:]
        if arguments[0] == "sample":
            arguments += [] if "--model" in arguments else ["--model", "runs/emoji/model"]
            arguments += [] if "--steps" in arguments else ["--steps", "2"]
        assert main.main(arguments) == 0


def test_every_benchmark_is_described():
    page = (ROOT / "docs" / "benchmarks.md").read_text(encoding="utf-8")
    for path in (ROOT / "benchmarks").glob("*.py"):
        if "__main__" in path.read_text(encoding="utf-8"):
            assert f"python -m benchmarks.{path.stem}\n" in page and f"| `{path.stem}` |" in page


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_links_lead_somewhere(page):
    for target in re.findall(r"\]\((?!https?:)([^)#]+)", page.read_text(encoding="utf-8")):
        assert (page.parent / target).exists(), target
