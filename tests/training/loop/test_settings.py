from dataclasses import asdict

from sdjax.training import Lesson
from sdjax.training.loop.settings import as_json, changes


def test_a_changed_lesson_is_named_as_on_the_command_line():
    def settings(*lessons):
        return as_json({"diffusion": {"curriculum": [asdict(lesson) for lesson in lessons]}})

    before = settings(Lesson(64, "left of"), Lesson(128))
    assert changes(before, before) == []
    assert changes(before, settings(Lesson(64, "left of"), Lesson(256, repeats=4))) == [
        "changed since: diffusion.curriculum.1.examples 128 -> 256",
        "changed since: diffusion.curriculum.1.repeats 0 -> 4",
    ]
    assert len(changes(before, settings(Lesson(64, "left of")))) == 1


def test_numbers_in_a_list_stay_together():
    assert changes({"channels": [8, 16]}, {"channels": [8, 32]}) == [
        "changed since: channels [8, 16] -> [8, 32]"
    ]
