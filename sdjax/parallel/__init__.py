"""Devices: one XLA CPU device a core, the compile cache, and where arrays lie on how many devices
of how many hosts.

Nothing here runs on import; a program that wants CPU devices asks for them before its first
computation. Pipelines and trainings ask for the cache.
"""

from .cache import use_compile_cache
from .copies import (
    AXIS,
    placed,
    replicate,
    replicated,
    shard_batch,
    split,
    to_host,
)
from .devices import THREADS_PER_DEVICE, largest_divisor, use_cpu_devices
from .distributed import Distributed, Votes, in_turn, leader, meet, together
from .placement import COPIES, Copies, Placement, Sharded, map_over_devices

__all__ = [
    "AXIS",
    "COPIES",
    "THREADS_PER_DEVICE",
    "Copies",
    "Distributed",
    "Placement",
    "Sharded",
    "Votes",
    "in_turn",
    "largest_divisor",
    "leader",
    "map_over_devices",
    "meet",
    "placed",
    "replicate",
    "replicated",
    "shard_batch",
    "split",
    "to_host",
    "together",
    "use_compile_cache",
    "use_cpu_devices",
]
