"""Known pictures of a data source, for comparison with generated ones."""

import random

import numpy as np

from sdjax.data import DataConfig, open_source
from sdjax.errors import SdjaxError


def known_pictures(data: DataConfig, count=None, seed=None):
    """(uint8 [N, H, W, 3], N captions) of a source, its broken items left out.

    count: how many at most; all of the source where None. seed: in which order they are drawn; the
    source's own where None. SdjaxError where there is none.
    """
    source = open_source(data)
    count = len(source) if count is None else min(count, len(source))
    order = range(len(source))
    if seed is not None:  # twice as many as wanted, in case some are broken
        order = random.Random(seed).sample(order, min(2 * count, len(order)))
    images, captions = [], []
    for index in order:
        if len(images) == count:
            break
        item = source[index]
        if item is not None:
            images.append(item["image"])
            captions.append(item["caption"])
    if not images:
        raise SdjaxError(f"the source {data.source!r} has no usable pictures")
    return np.stack(images), captions
