"""What devices can do, from their makers' tables."""

from typing import NamedTuple


class Chip(NamedTuple):
    """What a device can do, from its maker's tables."""

    flops: float
    """bfloat16 operations a second."""
    memory: int
    """Bytes."""
    bandwidth: float
    """Bytes a second of its memory."""
    links: float
    """Bytes a second to its neighbours, in one direction."""
    compiles: bool = True
    """Whether a compiler for it is here without the device."""
    kinds: tuple[str, ...] = ()
    """How `jax.Device.device_kind` of one begins."""


CHIPS = {
    "v5e": Chip(197e12, 16 * 2**30, 819e9, 200e9, kinds=("TPU v5 lite", "TPU v5e")),
    "v5p": Chip(459e12, 95 * 2**30, 2765e9, 600e9, kinds=("TPU v5",)),
    "v6e": Chip(918e12, 32 * 2**30, 1638e9, 400e9, kinds=("TPU v6 lite", "TPU v6e")),
    "a100": Chip(312e12, 80 * 10**9, 2039e9, 300e9, False, ("NVIDIA A100",)),
    "h100": Chip(989e12, 80 * 10**9, 3350e9, 450e9, False, ("NVIDIA H100 80GB", "NVIDIA H100 SXM")),
    "h200": Chip(989e12, 141 * 10**9, 4800e9, 450e9, False, ("NVIDIA H200",)),
}
"""Of Google's pages on TPU versions and NVIDIA's data sheets (SXM boards, dense)."""


def least_seconds(name: str, flops: float, accessed: float | None = None) -> dict[str, float]:
    """Seconds that a chip takes at least, for computing and, where bytes read and written are
    known, for its memory; empty for chips whose figures are not known.
    """
    chip = CHIPS.get(name)
    if chip is None:
        return {}
    found = {"compute": flops / chip.flops}
    return found if accessed is None else {**found, "memory": accessed / chip.bandwidth}


def chip_of(kind: str) -> Chip | None:
    """The chip of a `jax.Device.device_kind`; None where its figures are not known."""
    fits = [
        (len(start), chip) for chip in CHIPS.values() for start in chip.kinds
        if kind.startswith(start)
    ]  # fmt: skip
    return max(fits, key=lambda pair: pair[0])[1] if fits else None
