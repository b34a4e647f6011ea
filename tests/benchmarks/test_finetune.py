"""The pictures that the fine-tuning benchmark makes, its measures, and its command lines."""

import numpy as np
import pytest

from benchmarks import finetune, finetune_data, finetune_measures
from sdjax.training.recipes.recipe import load_config, with_overrides


@pytest.fixture
def disc():
    """A red disc on white, above the middle, uint8 [64, 64, 3]."""
    y, x = np.mgrid[:64, :64]
    inside = (x - 32) ** 2 + (y - 24) ** 2 < 200
    return np.where(inside[..., None], np.uint8([200, 30, 30]), np.uint8(255))


def test_two_colours(disc):
    """Black and white become the two, and nothing is off the line between them."""
    ends = finetune_data.duotone(np.uint8([[[0] * 3, [255] * 3]]))
    assert (ends[0, 0] == finetune_data.DARK).all() and (ends[0, 1] == finetune_data.LIGHT).all()
    assert finetune_data.off_style(finetune_data.duotone(disc)) < 0.5  # rounding
    assert finetune_data.off_style(disc) > 20


def test_distance_from_the_style_is_that_from_the_line():
    """A colour beside the line, at a known distance across it; beyond an end, from the end."""
    way = (finetune_data.LIGHT - finetune_data.DARK).astype(float)
    across = np.cross(way, [1.0, 0, 0])
    across *= 30 / np.linalg.norm(across)
    beside = (finetune_data.DARK + way / 2 + across)[None, None]
    assert finetune_data.off_style(beside) == pytest.approx(30 / 3**0.5, rel=1e-6)
    beyond = (finetune_data.LIGHT + 24 * way / np.linalg.norm(way))[None, None]
    assert finetune_data.off_style(beyond) == pytest.approx(24 / 3**0.5, rel=1e-6)


def test_views_are_mirrored_and_turned(disc):
    np.testing.assert_array_equal(finetune_data.turned(disc, mirror=True), disc[:, ::-1])
    half = finetune_data.turned(disc, size=0.5)
    assert (half[:16] == 255).all() and (half != 255).any()
    over = finetune_data.turned(disc, 180)
    assert (over[..., 1] < 128).nonzero()[0].mean() > 36  # the disc has gone below the middle
    pictures, captions = finetune_data.turned_views({"a": disc, "b": half}, ["b", "a"], count=2)
    assert captions == ["b"] * 3 + ["a"] * 3
    np.testing.assert_array_equal(pictures[3], disc)
    again, _ = finetune_data.turned_views({"a": disc, "b": half}, ["b", "a"], count=2, seed=1)
    assert not np.array_equal(pictures[1], again[1])


def test_agreement_of_edges(disc):
    """All of a picture's own, none of an empty one's, and less of one that has moved."""
    edges = finetune_data.edges(disc)
    assert finetune_measures.agreement([disc], [edges]) == {"precision": 1, "recall": 1, "f1": 1}
    blank = np.full_like(disc, 255)
    assert finetune_measures.agreement([blank], [edges])["f1"] == 0
    assert finetune_measures.agreement([np.roll(disc, 1, 1)], [edges])["f1"] == 1  # within one pixel
    assert 0 < finetune_measures.agreement([np.roll(disc, 8, 1)], [edges])["f1"] < 0.6


def test_a_repainted_middle(disc):
    """The same picture has no error; a middle that is 12 levels lighter, that error and step."""
    truth = np.full((1, 64, 64, 3), 100, np.uint8)
    assert finetune_measures.repainted(truth, truth) == {"error": 0, "seam": 0}
    made = truth.copy()
    made[:, 16:48, 16:48] += 12
    assert finetune_measures.repainted(made, truth) == {"error": 12, "seam": 12}
    made[:, :16] = 0  # what is not repainted does not count in the error
    assert finetune_measures.repainted(made, truth)["error"] == 12


@pytest.mark.parametrize("name", finetune.TRAININGS)
def test_commands_are_those_of_the_recipes(name, tmp_path):
    """Every option is one of the recipe's, and the adaptation is what the name says."""
    command = finetune.command(name, tmp_path)
    assert command[:2] == ["train", "--config"] and command[5] == "--workdir"
    recipe = with_overrides(load_config(finetune.ROOT / command[2]), command[3:5] + command[7:])
    kinds = {"dreambooth": "LoRA", "word": "LearnedWord"}
    expected = kinds.get(name.split("-")[0], name)
    assert type(recipe.diffusion.adaptation).__name__.lower() == expected.lower()
    assert (recipe.diffusion.prior is not None) == (name == "dreambooth")


def test_table_between_the_marks(tmp_path):
    page = tmp_path / "page.md"
    page.write_text("a\n<!-- finetune: written by the command -->\nold\n<!-- /finetune -->\nb\n")
    result = {"core_minutes": 4.2, "command": "train x", "table": [["what", 1, 2], ["more", 3, 4]]}
    finetune.write_between_marks(page, finetune.markdown({"lora": result}))
    text = page.read_text()
    assert "| `lora`, 4 core-minutes | what | 1 | 2 |\n|  | more | 3 | 4 |" in text
    assert "(images/finetune-lora.webp)" in text and "finetune-word" not in text
    assert "python main.py train x" in text and "old" not in text and text.endswith("b\n")
    page.write_text("no marks")
    with pytest.raises(SystemExit, match="must have the marks"):
        finetune.write_between_marks(page, "")
