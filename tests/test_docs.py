"""The documents, read as a newcomer reads them: each page from its top, with a fresh checkout.

Nobody has trained anything then. What a program or a command needs is the shipped model, files of
the reader's own that the page names as such, or what the page made further up.
"""

import json
import re
import shlex
import shutil
import tomllib
from pathlib import Path

import numpy as np
import pytest

import main
import sdjax
import sdjax.evaluation
import sdjax.training
from docs import make_reference
from sdjax.cli import COMMANDS
from sdjax.diffusion.samplers.names import CLASSES
from sdjax.weights.tensors import lazy, write_safetensors
from tests.molecules.small import small_model
from tests.weights.small import random_pipeline

ROOT = Path(__file__).parent.parent
PAGES = [
    ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "CHANGELOG.md",
    *sorted((ROOT / "docs").glob("*.md")),
]  # fmt: skip
BLOCK = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
INLINE = re.compile(r"(?<!`)`([^`]+)`(?!`)")
FOLDERS = ("benchmarks", "configs", "docs", "notebooks", "sdjax", "tests")
RUNS = {("python", "main.py"): 2, ("sdjax",): 1, ("python", "-m", "sdjax"): 3}
"""How the command line is called -> the words of that."""
METADATA = ("sdjax.scheduler", "sdjax.low_res_scheduler", "sdjax.model_index")
"""Keys of a single file's metadata, which are spelled like names of the package."""


def text_of(page):
    return page.read_text(encoding="utf-8")


def inline(page):
    """What stands in single backticks on a page."""
    return [" ".join(code.split()) for code in INLINE.findall(BLOCK.sub("", text_of(page)))]


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    folder = tmp_path_factory.mktemp("model")
    pipeline = random_pipeline()
    pipeline.captions = ("red heart", "red apple")
    pipeline.save_pretrained(folder)
    return folder


@pytest.fixture(params=["small", pytest.param("shipped", marks=pytest.mark.full)])
def model(request, small):
    """What stands for the shipped model; itself in the full tests."""
    return small if request.param == "small" else sdjax.EMOJI


@pytest.fixture
def workplace(model, tmp_path, monkeypatch):
    """A checkout, and a LoRA and a word of the reader's own."""
    for name in ("configs", "benchmarks"):
        (tmp_path / name).symlink_to(ROOT / name)
    (tmp_path / "sdjax" / "assets").mkdir(parents=True)
    (tmp_path / "sdjax" / "assets" / "emoji").symlink_to(model)
    unet = json.loads((model / "unet" / "config.json").read_text())
    text = json.loads((model / "text_encoder" / "config.json").read_text())
    down, up = unet["in_channels"], unet["block_out_channels"][0]
    adapter = {"down": np.ones((2, down, 3, 3)), "up": np.full((up, 2, 1, 1), 1e-3)}
    write_safetensors(
        tmp_path / "style.safetensors",
        {f"lora_unet_conv_in.lora_{k}.weight": lazy(v) for k, v in adapter.items()},
    )
    word = lazy(np.ones((1, text["hidden_size"])))
    write_safetensors(tmp_path / "cat-toy.safetensors", {"<cat-toy>": word})
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sdjax, "EMOJI", model)

    shipped = model

    def train(recipe, workdir):
        if isinstance(recipe.diffusion, sdjax.training.MoleculeRun):
            small_model().save_pretrained(Path(workdir) / "model")
            return True
        shutil.copytree(shipped, Path(workdir) / "model", dirs_exist_ok=True)
        return True

    def evaluate(config, load_model, model):
        if getattr(config, "folder", None) is None:
            load_model()
        return {}

    # Read to its last option; a training's result is there at once.
    monkeypatch.setattr(sdjax.training, "train", train)
    monkeypatch.setattr(sdjax.evaluation, "run", evaluate)
    return tmp_path


def run_commands(text, model):
    for line in text.replace("\\\n", " ").splitlines():
        words = shlex.split(line, comments=True)
        if words:
            assert run_command(words, model) == 0, line


def run_command(words, model):
    """The exit status of a command of the documents, 0 where it is not one to be carried out."""
    for start, length in RUNS.items():
        if tuple(words[:length]) == start:
            arguments = words[length:]
            break
    else:
        check_tool(words)
        return 0
    if arguments[:1] == ["sample"] and model != ROOT / "sdjax" / "assets" / "emoji":
        arguments += ["--steps", "2"] if "--steps" not in arguments else []
    try:
        return main.main(arguments)
    except SystemExit as stop:  # --help
        return stop.code or 0


def check_tool(words):
    """A command of another program: what it names is there."""
    if words[0] == "make":
        targets = re.findall(r"^([\w-]+):", text_of(ROOT / "Makefile"), re.MULTILINE)
        assert words[1] in targets
    elif words[:2] == ["python", "-m"]:
        module = words[2].replace(".", "/")
        assert words[2] == "pytest" or (ROOT / f"{module}.py").is_file(), words
    elif words[0].endswith("pip"):
        project = tomllib.loads(text_of(ROOT / "pyproject.toml"))["project"]
        for extra in re.findall(r"\.\[(\w+)\]", " ".join(words)):
            assert extra in project["optional-dependencies"]
    else:
        assert words[0] in ("source", "apt", "cd"), f"no command of this project: {words}"


@pytest.mark.parametrize(
    "page", [page for page in PAGES if BLOCK.search(text_of(page))], ids=lambda page: page.stem
)
def test_programs_and_commands_run_from_the_top(page, model, workplace):
    for kind, text in BLOCK.findall(text_of(page)):
        assert kind in ("python", "bash", "json", "text"), f"a block of {kind or 'no language'}"
        if kind == "python":
            exec(compile(text, page.name, "exec"), {})
        if kind == "bash":
            run_commands(text, model)


def test_commands_in_the_text_run(small, workplace, subtests):
    for page in PAGES:
        for code in inline(page):
            words = code.split()
            if words[0] in COMMANDS and len(words) > 1:
                words = ["sdjax", *words]
            calls = any(tuple(words[:n]) == start for start, n in RUNS.items())
            ours = calls or words[0] == "make" or code.startswith("python -m ")
            if ours and len(words) > 1 and code not in ("python main.py", "python -m sdjax"):
                if "…" not in code and not re.search(r"\b[A-Z]{2,}\b", code):
                    with subtests.test(page=page.stem, command=code):
                        words = shlex.split(" ".join(words))
                        options = [word for word in words if word.startswith("--")]
                        if words[-len(options):] == options or not options:
                            # It only names a command, or an option of it.
                            words = [w for w in words if w not in options] + ["--help"]
                        assert run_command(words, small) == 0


@pytest.fixture(scope="module")
def options():
    """Every option of the command line, as its help spells it."""
    import contextlib
    import io

    kinds = ("shapes-accuracy", "similarity", "nearest-neighbour", "reconstruction", "molecules",
             "augmentation")
    recipes = ("emoji", "ddpm_resnet", "shapes_pairs", "dreambooth", "controlnet",
               "autoencoder_gan", "molecules")
    commands = [["train", "--config", name] for name in recipes]
    commands += [[name] for name in COMMANDS if name != "evaluate"]
    commands += [["evaluate", kind] for kind in kinds]
    found = set()
    for command in commands:
        with contextlib.redirect_stdout(io.StringIO()) as out, contextlib.suppress(SystemExit):
            main.main([*command, "--help"])
        found |= set(re.findall(r"--[\w.-]+", out.getvalue()))
    return found


def test_options_in_the_text_exist(options, subtests):
    assert {"--prompt", "--config", "--diffusion.steps"} <= options
    for page in PAGES:
        if page.stem in ("benchmarks", "CONTRIBUTING", "from_diffusers"):
            continue  # options of other programs
        for code in inline(page):
            if code.startswith("pip "):
                continue
            for option in re.findall(r"(?<![\w-])--[a-z][\w.-]*", code):
                with subtests.test(page=page.stem, option=option):
                    assert option in options | {"--help", "--version"}


def test_names_in_the_text_resolve(subtests):
    for page in PAGES:
        for code in inline(page):
            for name in re.findall(r"(?<![\w./])sdjax((?:\.[A-Za-z_]\w*)+)(?![\w/])", code):
                if f"sdjax{name}" in METADATA:
                    continue
                with subtests.test(page=page.stem, name=f"sdjax{name}"):
                    value = sdjax
                    for part in name.split(".")[1:]:
                        value = getattr(value, part)


def test_files_in_the_text_exist(subtests):
    for page in PAGES:
        for code in inline(page):
            if re.fullmatch(rf"({'|'.join(FOLDERS)})/[\w./-]*", code):
                with subtests.test(page=page.stem, file=code):
                    assert (ROOT / code).exists()


def test_every_page_is_in_the_readme():
    readme = text_of(ROOT / "README.md")
    for page in (ROOT / "docs").glob("*.md"):
        assert f"](docs/{page.name})" in readme, page.name


def test_every_benchmark_is_described():
    page = text_of(ROOT / "docs" / "benchmarks.md")
    for path in (ROOT / "benchmarks").glob("*.py"):
        if "__main__" in text_of(path):
            assert f"python -m benchmarks.{path.stem}\n" in page and f"| `{path.stem}` |" in page


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_links_lead_somewhere(page):
    for target in re.findall(r"\]\((?!https?:)([^)#]+)", text_of(page)):
        assert (page.parent / target).exists(), target


def test_every_class_of_diffusers_has_its_line():
    """The table for people from diffusers says what the code does, all of it."""
    text = text_of(ROOT / "docs" / "from_diffusers.md")
    rows = dict(re.findall(r"^\| `(\w+Scheduler)` \| `(\w+)`", text, re.MULTILINE))
    assert rows == CLASSES


def test_the_reference_is_current():
    written = text_of(make_reference.PAGE)
    assert written == make_reference.page(), "run: python -m docs.make_reference"
