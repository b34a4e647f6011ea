"""The package as it is installed and imported: lazy names, types, recipes, the wheel."""

import ast
import shutil
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest

import sdjax
from sdjax.training import known_recipes

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "sdjax"


def run(code, folder):
    """What a Python of its own prints that runs `code` in `folder`."""
    command = [sys.executable, "-c", f"import sys; sys.path.insert(0, {str(ROOT)!r})\n{code}"]
    made = subprocess.run(command, cwd=folder, capture_output=True, text=True)
    assert made.returncode == 0, made.stderr
    return made.stdout.split()


def test_importing_loads_nothing_heavy_and_every_module_resolves(tmp_path):
    code = """
import sdjax
print(*sorted({name.split(".")[0] for name in sys.modules} & {"jax", "flax", "tyro", "PIL"}))
for name in sdjax._MODULES:
    assert getattr(sdjax, name).__name__ == f"sdjax.{name}"
for name in sdjax.__all__:
    getattr(sdjax, name)
import sdjax.data, sdjax.training
heavy = {"tensorflow_datasets", "matplotlib", "tensorboardX", "transformers", "tensorflow", "torch"}
print(*sorted(heavy & set(sys.modules)))
"""
    assert run(code, tmp_path) == []


def test_a_pipeline_imports_nothing_of_training(tmp_path):
    code = """
import sdjax
sdjax.StableDiffusion
heavy = {"grain", "orbax", "optax", "scipy", "transformers", "torch", "tensorboardX"}
print(*sorted(heavy & {name.split(".")[0] for name in sys.modules}))
"""
    assert run("import sys\n" + code, tmp_path) == []


def test_every_module_of_the_package_is_reached():
    inner = {"assets", "caches", "cli", "folders", "room", "text_files", "version", "words"}
    found = {path.stem for path in PACKAGE.iterdir() if not path.name.startswith("_")}
    assert set(sdjax._MODULES) == {name for name in found if name != "py"} - inner
    assert {*sdjax._MODULES, "add_noise"} <= set(dir(sdjax))
    with pytest.raises(AttributeError, match="'sdjax' has no attribute 'add_nose'"):
        _ = sdjax.add_nose


def test_what_a_type_checker_reads_is_what_runs():
    tree = ast.parse((PACKAGE / "__init__.py").read_text(encoding="utf-8"))
    (block,) = [node for node in tree.body if isinstance(node, ast.If)]
    assert ast.unparse(block.test) == "TYPE_CHECKING" and (PACKAGE / "py.typed").is_file()
    read = {}
    for node in block.body:
        for name in node.names:
            assert name.asname == name.name  # so that it counts as public
            read.setdefault(node.module, []).append(name.name)
    assert read.pop(None) == list(sdjax._MODULES)
    assert {f"sdjax.{module}": tuple(names) for module, names in read.items()} == sdjax._HOME


def test_the_wheel_holds_package_recipes_and_a_page_without_dead_links(tmp_path):
    command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-index"]
    command += ["--no-build-isolation", "--wheel-dir", str(tmp_path), str(copied(tmp_path / "src"))]
    subprocess.run(command, check=True, capture_output=True)
    (wheel,) = tmp_path.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        held = set(archive.namelist())
        (metadata,) = [name for name in held if name.endswith("METADATA")]
        page = archive.read(metadata).decode()
        archive.extractall(tmp_path / "site")
    files = {str(p.relative_to(ROOT)) for p in PACKAGE.rglob("*") if p.is_file()}
    assert {name for name in files if "__pycache__" not in name} <= held
    assert {f"sdjax/recipes/{path.name}" for path in known_recipes().values()} <= held
    assert not any(name.startswith(("tests", "benchmarks", "configs")) for name in held)
    assert "](" not in page.replace("](http", "") and "# sdjax" in page
    code = f"""
sys.path.insert(0, {str(tmp_path / "site")!r})
import sdjax.training
assert sdjax.__file__.startswith({str(tmp_path / "site")!r})
assert sdjax.EMOJI.is_dir()
for name in sdjax.training.known_recipes():
    sdjax.training.load_config(name)
    print(name)
"""
    assert run(code, tmp_path) == list(known_recipes())


def copied(folder):
    """The files that the build reads, so that it leaves nothing in the repository."""
    skipped = shutil.ignore_patterns("__pycache__", ".*")
    for name in ("sdjax", "configs", "docs"):
        shutil.copytree(ROOT / name, folder / name, ignore=skipped)
    for path in ROOT.iterdir():
        if path.is_file() and not path.name.startswith("."):
            shutil.copy(path, folder)
    return folder


def pinned(name):
    """Package -> version of a requirements file."""
    lines = (ROOT / name).read_text(encoding="utf-8").splitlines()
    kept = [line.split("#")[0].strip() for line in lines if line.split("#")[0].strip()]
    return dict(line.lower().split("==") for line in kept)


def test_the_lower_bounds_are_the_oldest_versions_that_are_tested():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    bounds = dict(
        line.lower().split(">=")
        for line in [*project["dependencies"], *extras["datasets"], *extras["plots"]]
    )
    oldest = pinned("requirements-oldest.txt")
    assert bounds == oldest
    assert bounds.keys() <= pinned("requirements.txt").keys()
    for extra in ("cuda", "cuda13", "tpu"):
        (line,) = extras[extra]
        assert line.endswith(f">={oldest['jax']}")
