"""Buckets against sd-scripts' public rule, read anew."""

import math

import numpy as np
import pytest

from sdjax.data.buckets import Buckets, Fit, fitted
from sdjax.errors import SdjaxError


def test_the_sizes_of_the_usual_settings():
    sides = [(256, 1024), (320, 768), (384, 640), (448, 576), (512, 512), (576, 448), (640, 384),
             (704, 320), (768, 320), (832, 256), (896, 256), (960, 256), (1024, 256)]
    assert Buckets(512).sizes == sorted({*sides, *(size[::-1] for size in sides)})
    assert len(Buckets(1024, largest=2048).sizes) == len(set(Buckets(1024, largest=2048).sizes))


def rule(width, height, size, smallest, largest, step, enlarge):
    """(bucket, resized) step by step, without what `Buckets` is made of."""
    area, ratio = size * size, width / height
    if enlarge:
        known = {(int(math.sqrt(area) // step) * step,) * 2}
        side = smallest
        while side <= largest:
            other = min(largest, int((area // side) // step) * step)
            if other >= smallest:
                known.update([(side, other), (other, side)])
            side += step
        bucket, best = None, None
        for candidate in sorted(known):
            error = abs(candidate[0] / candidate[1] - ratio)
            if candidate == (width, height):
                bucket = candidate
                break
            if best is None or error < best:
                bucket, best = candidate, error
        if ratio > bucket[0] / bucket[1]:
            scale = bucket[1] / height
        else:
            scale = bucket[0] / width
        return bucket, (int(width * scale + 0.5), int(height * scale + 0.5))
    resized = (width, height)
    if width * height > area:
        wide = math.sqrt(area * ratio)
        high = area / wide

        def down(x):
            x = int(x + 0.5)
            return x - x % step

        a, b = down(wide), down(high)
        if abs(a / down(a / ratio) - ratio) < abs(down(b * ratio) / b - ratio):
            resized = (a, int(a / ratio + 0.5))
        else:
            resized = (int(b * ratio + 0.5), b)
    return (resized[0] // step * step, resized[1] // step * step), resized


def test_ten_thousand_sizes_go_where_the_rule_sends_them():
    random = np.random.default_rng(0)
    settings = [Buckets(512), Buckets(512, enlarge=False), Buckets(1024, 512, 2048, 64),
                Buckets(768, 320, 1536, 32), Buckets(1024, 256, 2048, 64, False)]
    for number in range(10_000):
        buckets = settings[number % len(settings)]
        width = int(np.exp(random.uniform(np.log(200), np.log(5000))))
        height = int(width * np.exp(random.uniform(-1.4, 1.4))) or 1
        width, height = max(width, 64), max(height, 64)
        wanted = rule(width, height, buckets.image_size, buckets.smallest, buckets.largest,
                      buckets.step, buckets.enlarge)
        assert buckets.fit(width, height) == Fit(*wanted), (buckets, width, height)


def test_a_size_that_is_a_bucket_stays():
    for size in Buckets(512).sizes:
        assert Buckets(512).fit(*size) == Fit(size, size)


def test_pictures_are_resized_and_cut_in_the_middle():
    buckets = Buckets(64, 32, 128, 16)
    picture = np.zeros((50, 100, 3), np.uint8)
    picture[:, 50:] = 255
    fit = buckets.fit(100, 50)
    cut = fitted(picture, fit)
    assert cut.shape == (fit.bucket[1], fit.bucket[0], 3)
    middle = fit.bucket[0] // 2
    assert cut[:, :middle - 3].max() < 30 and cut[:, middle + 3:].min() > 225


def test_what_is_too_small_is_told():
    with pytest.raises(SdjaxError, match="30x200 is too small for a bucket"):
        Buckets(512, enlarge=False).fit(30, 200)
    for size in ((20_000, 20), (20, 20_000)):  # narrow, though not small
        with pytest.raises(SdjaxError, match="is too small for a bucket"):
            Buckets(512, enlarge=False).fit(*size)
    with pytest.raises(SdjaxError, match="largest side of a bucket"):
        Buckets(2048)
