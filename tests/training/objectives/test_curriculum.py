import numpy as np
import pytest

from sdjax.errors import SdjaxError
from sdjax.training import Lesson

CAPTIONS = np.array(["a red cat", "a dog", "a cat inside a box", "a red box"])


@pytest.mark.parametrize(("lesson", "items"), [
    (Lesson(8), [0, 1, 2, 3]),
    (Lesson(8, "cat"), [0, 2]),
    (Lesson(8, "dog|^a red"), [0, 1, 3]),
    (Lesson(8, "cat", repeats=1), [0, 1, 2, 3]),
    (Lesson(8, "cat", repeats=3), [0, 0, 0, 1, 2, 2, 2, 3]),
])
def test_what_an_epoch_of_a_lesson_draws(lesson, items):
    np.testing.assert_array_equal(lesson.items(CAPTIONS), items)


def test_a_lesson_about_nothing():
    with pytest.raises(SdjaxError, match="no caption matches the lesson's 'bird'"):
        Lesson(8, "bird", repeats=2).items(CAPTIONS)


@pytest.mark.parametrize(("values", "message"), [
    ({"examples": 4, "captions": "("}, r"captions '\(' are not a regular expression: "),
    ({"examples": 0}, "examples must be at least 1, got 0"),
    ({"examples": 4, "repeats": -1}, "repeats must be at least 0, got -1"),
])
def test_a_lesson_that_cannot_be(values, message):
    with pytest.raises(SdjaxError, match=message):
        Lesson(**values)
