"""Programs compiled for TPUs that are not there: their memory and work, from the compiler itself.

Needs the package `libtpu`, which `pip install "sdjax[tpu]"` brings; no TPU.
"""

import os
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import SingleDeviceSharding

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


def cost(function, *arguments: Any, device) -> Cost:
    """What `function(*arguments)` takes of a device that need not be there.

    arguments: trees of arrays or of `jax.ShapeDtypeStruct`; only shapes and dtypes count.
    """
    place = SingleDeviceSharding(device)

    def shape(leaf):
        leaf = leaf if hasattr(leaf, "dtype") else np.asarray(leaf)
        return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=place)

    shapes = jax.tree.map(shape, arguments)
    with compiling_for("tpu"):
        compiled = jax.jit(function).lower(*shapes).compile()
    sizes, work = compiled.memory_analysis(), compiled.cost_analysis()
    return Cost(
        sizes.argument_size_in_bytes,
        sizes.output_size_in_bytes - sizes.alias_size_in_bytes,
        sizes.temp_size_in_bytes,
        work["flops"],
        work["bytes accessed"],
    )
