"""Programs compiled for TPUs that are not there: their memory and work, from the compiler itself.

Needs the package `libtpu`, which `pip install "sdjax[tpu]"` brings; no TPU.
"""

import math
import os
import re
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import SingleDeviceSharding

from sdjax.chips import CHIPS
from sdjax.errors import SdjaxError
from sdjax.models.attention_kernels import compiling_for

# Without these libtpu asks a cloud for the machine that it runs on, and wants to be alone on it.
_QUIET = {"TPU_SKIP_MDS_QUERY": "1", "ALLOW_MULTIPLE_LIBTPU_LOAD": "1"}


class Cost(NamedTuple):
    """What a compiled program takes of one device."""

    arguments: int
    """Bytes of parameters and inputs."""
    outputs: int
    temporary: int
    """Bytes that it has for itself while it runs."""
    flops: float
    accessed: float
    """Bytes that it reads and writes."""

    @property
    def memory(self) -> int:
        """Bytes of the device's memory that must be free for it, arguments included."""
        return self.arguments + self.outputs + self.temporary


def devices(topology: str) -> list:
    """Devices of a TPU slice that need not be there, such as "v5e:2x2"; only to compile for.

    Raises SdjaxError where libtpu is missing or knows no such slice.
    """
    from jax.experimental import topologies

    os.environ.update({name: os.environ.get(name, value) for name, value in _QUIET.items()})
    try:
        found = topologies.get_topology_desc(platform="tpu", topology_name=topology)
    except Exception as error:
        reason = str(error).strip().partition("\n")[0]
        raise SdjaxError(
            f'cannot compile for {topology}: {reason} (`pip install "sdjax[tpu]"` brings the '
            "compiler; slices are named as in v5e:2x2)"
        ) from error
    return list(found.devices)


class Place(NamedTuple):
    """Devices to plan for."""

    chip: str
    devices: list
    """To compile for; where nothing is compiled, one of this machine."""
    count: int
    compiles: bool
    """Whether programs are compiled for them, and not only counted as they are written."""


def place(topology: str, compiled: bool = True) -> Place:
    """The devices of "v5e:2x4", "h100:8", or of "cpu", which is this machine.

    compiled: whether programs for TPUs are compiled. Those for GPUs never are, as there is no
    compiler without one. Raises SdjaxError for what is none of these.
    """
    name, _, size = topology.partition(":")
    if name == "cpu":
        return Place(name, jax.devices(), len(jax.devices()), True)
    if name not in CHIPS:
        raise SdjaxError(
            f"no topology {topology!r}: expected cpu, or one of {', '.join(CHIPS)} with a "
            "size, as in v5e:2x4 or h100:8"
        )
    if CHIPS[name].compiles and compiled:
        found = devices(topology)
        return Place(name, found, len(found), True)
    sides = [side for side in size.split("x") if side.isdigit() and int(side) > 0]
    if len(sides) != size.count("x") + 1 or (not CHIPS[name].compiles and len(sides) > 1):
        slices = CHIPS[name].compiles
        what = "a slice, as in v5e:2x4" if slices else f"a number of GPUs, as in {name}:8"
        raise SdjaxError(f"expected {what}, got {topology!r}")
    return Place(name, jax.devices()[:1], math.prod(map(int, sides)), False)


def cost(function, *arguments: Any, device, platform: str = "tpu", compiled: bool = True) -> Cost:
    """What `function(*arguments)` takes of a device that need not be there.

    arguments: trees of arrays or of `jax.ShapeDtypeStruct`; only shapes and dtypes count. platform:
    the device's. compiled: where not, operations are those of the function as it is written, and
    what only a compiler knows is 0.
    """
    here = SingleDeviceSharding(device)

    def shape(leaf):
        leaf = leaf if hasattr(leaf, "dtype") else np.asarray(leaf)
        return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=here)

    shapes = jax.tree.map(shape, arguments)
    with compiling_for(platform):
        program = jax.jit(function).lower(*shapes)
        if not compiled:
            held = (_bytes_of(tree) for tree in (shapes, program.out_info))
            return Cost(*held, 0, program.cost_analysis()["flops"], 0.0)
        program = program.compile()
    sizes, work = program.memory_analysis(), program.cost_analysis()
    return Cost(
        sizes.argument_size_in_bytes,
        sizes.output_size_in_bytes - sizes.alias_size_in_bytes,
        sizes.temp_size_in_bytes,
        work["flops"],
        work["bytes accessed"],
    )


def _bytes_of(tree) -> int:
    return sum(math.prod(leaf.shape) * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree))


_COLLECTIVE = re.compile(
    r"= (\(?[^=]*?\)?) (all-reduce|all-gather|reduce-scatter|all-to-all|collective-permute)"
    r"(-start)?\((.*)"
)
_SHAPE = re.compile(r"\b(pred|[a-z]+(\d+)[a-z0-9]*)\[([\d,]*)\]")


class Collective(NamedTuple):
    """What the devices of a program tell each other at one place of it."""

    kind: str
    size: int
    """Bytes of the whole array on each device of a group, before or after."""
    group: int
    """Devices that take part."""

    @property
    def moved(self) -> float:
        """Bytes that each device sends, at least."""
        share = self.size * (self.group - 1) / self.group
        return {"all-reduce": 2 * share, "collective-permute": self.size}.get(self.kind, share)


def collectives(text: str, count: int) -> list[Collective]:
    """Those of a compiled program's text (`Compiled.as_text()`); what a loop repeats counts once.

    count: devices of the program.
    """
    found = []
    for line in text.splitlines():
        match = _COLLECTIVE.search(line)
        if match is None:
            continue
        result, kind, begun, rest = match.groups()
        sizes = [_bytes(*shape) for shape in _SHAPE.findall(result)]
        if begun and kind != "all-reduce":  # operands come before results
            sizes = sizes[len(sizes) // 2 :] if kind == "all-gather" else sizes[:1]
        group = _group(rest, count)
        if group > 1 or kind == "collective-permute":
            size = sum(sizes) * (group if kind == "reduce-scatter" else 1)
            found.append(Collective(kind, size, max(group, 1)))
    return found


def _bytes(name, bits, dimensions):
    each = 1 if name == "pred" else max(1, int(bits) // 8)
    return each * int(np.prod([int(n) for n in dimensions.split(",") if n], dtype=np.int64))


def _group(rest, count):
    if short := re.search(r"replica_groups=\[(\d+),(\d+)\]", rest):
        return int(short[2])
    if listed := re.search(r"replica_groups=\{\{([\d,]*)\}", rest):
        return len(listed[1].split(","))
    return count
