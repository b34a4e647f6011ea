"""Skeletons against the same drawn by OpenCV, which differs by pixels at the edges only."""

import json
import math

import cv2
import numpy as np
import pytest

import sdjax
from sdjax.data import pose
from sdjax.data.pose import _COLOURS, _LIMBS

SIZE = 256, 192  # height and width


def people(count, seed=0):
    """Random points [18, 3], some of them missing."""
    rng = np.random.RandomState(seed)
    return [
        np.c_[rng.rand(18) * (SIZE[1] - 10) + 5, rng.rand(18) * (SIZE[0] - 10) + 5,
              rng.rand(18) > 0.2]
        for _ in range(count)
    ]  # fmt: skip


def openpose(persons, **more):
    return {"people": [{"pose_keypoints_2d": one.ravel().tolist()} for one in persons], **more}


def drawn_by_opencv(persons):
    canvas = np.zeros((*SIZE, 3), np.uint8)
    for limb, colour in zip(_LIMBS, _COLOURS, strict=False):
        for person in persons:
            if person[list(limb), 2].all():
                (x0, y0), (x1, y1) = person[list(limb), :2]
                corners = cv2.ellipse2Poly(
                    (int((x0 + x1) / 2), int((y0 + y1) / 2)),
                    (int(math.hypot(x0 - x1, y0 - y1) / 2), 4),
                    int(math.degrees(math.atan2(y0 - y1, x0 - x1))), 0, 360, 1,
                )  # fmt: skip
                cv2.fillConvexPoly(canvas, corners, colour)
    canvas = np.uint8(0.6 * canvas)
    for number, colour in enumerate(_COLOURS):
        for person in persons:
            if person[number, 2]:
                cv2.circle(canvas, tuple(map(int, person[number, :2])), 4, colour, thickness=-1)
    return canvas


@pytest.mark.parametrize("count", [1, 3])
def test_limbs_and_points_are_those_of_opencv(count):
    expected = drawn_by_opencv(people(count))
    found = np.asarray(pose(openpose(people(count)), SIZE))
    assert found.shape == (*SIZE, 3)
    share = (expected > 0).any(-1).mean()
    assert share > 0.1
    assert (found != expected).any(-1).mean() < 0.05 * share


def test_a_point_and_a_limb_have_their_colours():
    person = np.zeros((18, 3))
    person[1], person[2] = (50, 100, 1), (150, 100, 0.5)  # neck and right shoulder
    found = np.asarray(pose(openpose([person]), SIZE))
    assert found[100, 50].tolist() == [255, 85, 0]
    assert found[100, 150].tolist() == [255, 170, 0]
    assert found[100, 100].tolist() == [153, 0, 0]
    assert not found[110:].any() and not found[:90].any()


def test_canvases_shares_and_25_points_are_the_same(tmp_path):
    (person,) = people(1)
    expected = np.asarray(pose(openpose([person]), SIZE))
    half = person * [0.5, 0.5, 1]
    canvas = {"canvas_width": SIZE[1] / 2, "canvas_height": SIZE[0] / 2}
    shares = person / [SIZE[1], SIZE[0], 1]
    more = np.insert(person, 8, [3, 3, 1], axis=0)
    more = np.r_[more, np.full((6, 3), 7.0)]
    (tmp_path / "a.json").write_text(json.dumps(openpose([person])))
    for same in (
        openpose([half], **canvas), openpose([shares]), openpose([more]), tmp_path / "a.json"
    ):  # fmt: skip
        np.testing.assert_array_equal(np.asarray(pose(same, SIZE)), expected)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("[]", "must hold a JSON object of OpenPose, found a list"),
        ("{", "is not JSON"),
        ("{}", '"people", a list of at least one'),
        ('{"people": [{}]}', "person 0 must have pose_keypoints_2d of 18 or 25 points.*got 0"),
        ('{"people": [{"pose_keypoints_2d": [1, 2, "a"]}]}', "got 0 points"),
        ('{"people": [{"pose_keypoints_2d": [1, 2, 3]}]}', "got 1 points"),
    ],
)
def test_other_json_is_refused(content, message, tmp_path):
    (tmp_path / "a.json").write_text(content)
    with pytest.raises(sdjax.SdjaxError, match=message):
        pose(tmp_path / "a.json", SIZE)
    with pytest.raises(sdjax.SdjaxError, match="canvas_width and canvas_height must be above 0"):
        pose(openpose(people(1), canvas_width=0, canvas_height=4), SIZE)
