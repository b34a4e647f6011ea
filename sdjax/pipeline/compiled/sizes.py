"""How many images a batch has: numbers that were compiled before, where they will do."""

import functools

import jax


@functools.cache
def compiled(*kind) -> set[int]:
    """The sizes of batches that were made of a kind of request, to be added to.

    kind: hashable, all beside the size that chooses the programs.
    """
    del kind
    return set()


def shapes(inputs) -> tuple:
    """What of a batch's inputs chooses the program, the number of images apart; hashable."""
    leaves, structure = jax.tree.flatten(inputs)
    return structure, tuple((leaf.shape[1:], leaf.dtype.name) for leaf in leaves)


def at_once(total: int, wanted: int | None, known: set[int]) -> int:
    """How many of `total` images to make at once; the last batch is filled up.

    wanted: how many the caller asked for; None for whatever is best, which is to compile nothing
    anew as long as no more than twice the images are computed, one alone not at all. known: sizes
    that are compiled. Sizes that are to be compiled are few: 1, 2, 3, 4, 6, 8, and multiples of 4.
    """
    most = total if wanted is None else min(wanted, total)

    def computed(size):
        return -(-total // size) * size

    fit = [
        size for size in known
        if (total > 1 or size == 1) and computed(size) <= 2 * total
        and (wanted is None or most <= size <= wanted)
    ]  # fmt: skip
    if fit:
        return min(fit, key=lambda size: (computed(size), -size))
    if wanted is not None and most == wanted:
        return most
    few = next(size for size in (1, 2, 3, 4, 6, 8, -(-most // 4) * 4) if size >= most)
    return few if wanted is None else min(few, wanted)
