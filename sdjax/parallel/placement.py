"""Where arrays lie: copies on each device, or one mesh with axes data, fsdp and tensor.

The body of a training step and the functions of a generation are written once, for a share of a
batch; a placement says what that share is and compiles them.
"""

import contextlib
import functools
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import mesh_utils, multihost_utils
from jax.flatten_util import ravel_pytree
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from sdjax.errors import SdjaxError

from .copies import AXIS, map_locally, placed, replicate, replicated, shard_batch, split, to_host
from .rules import FSDP, TENSOR, specs

DATA = "data"
SHARES = (DATA, FSDP)
"""The axes of a mesh that a batch is cut over."""
_HOST = "pinned_host"


@dataclass(frozen=True)
class Placement:
    """How many devices hold one copy of the parameters between them.

    With 1 and 1, on one host, each device has a copy of its own and its share of the batch, by
    pmap. Else all devices of all hosts are one mesh, data x fsdp x tensor, and the optimizer's
    state and the moving average lie as the parameters do. The result is the same.
    """

    fsdp: int = 1
    """Devices that share out the parameters, and the batch too; -1 for all there are."""
    tensor: int = 1
    """Devices that share out each large product, and compute the same part of the batch."""

    def __post_init__(self):
        if self.fsdp < 1 and self.fsdp != -1:
            raise SdjaxError(f"placement.fsdp must be at least 1, or -1 for all, got {self.fsdp}")
        if self.tensor < 1:
            raise SdjaxError(f"placement.tensor must be at least 1, got {self.tensor}")

    def here(self) -> "Copies | Sharded":
        """This placement on the devices of this process alone."""
        return COPIES if self == Placement() else self.laid_out(jax.local_devices())

    def laid_out(self, devices=None) -> "Copies | Sharded":
        """This placement on the devices, by default all of the job; SdjaxError where they do not
        fit it.
        """
        if self == Placement() and devices is None and jax.process_count() == 1:
            return COPIES
        return Sharded.over(self.fsdp, self.tensor, devices)


class Copies:
    """A copy of everything on each local device: what is mapped sees the share of one."""

    fsdp = tensor = 1
    sharing = 1
    """Devices that share out the operations of one compiled body."""

    @property
    def groups(self) -> int:
        """How many parts a batch is cut into."""
        return jax.local_device_count()

    @property
    def parts(self) -> int:
        """How many shares of a batch the body of a step is run for."""
        return self.groups

    def part(self):
        """Which of them this one is, int32 []; inside a body."""
        return jax.lax.axis_index(AXIS)

    def mean(self, tree):
        """The mean over the shares; inside a body."""
        if self.parts == 1:
            return tree
        if jax.default_backend() == "cpu":
            # XLA:CPU meets once for each array; a few hundred of them cost more than the copies
            # into one vector. Accelerators combine their all-reduces themselves.
            flat, restore = ravel_pytree(tree)
            return restore(jax.lax.pmean(flat, AXIS))
        return jax.lax.pmean(tree, AXIS)

    def settled(self, tree):
        """The tree of parameters, or one of their names, laid out as parameters; inside a body."""
        return tree

    def keeping(self, name: str):
        """This placement with a field of the training's state in the hosts' memory between updates;
        SdjaxError where that cannot be.
        """
        raise SdjaxError(
            f"{name} in the host's memory is for devices that are one mesh: set placement.fsdp, "
            "to -1 for all devices"
        )

    def near(self, tree):
        """A field of the state on the devices; inside a body or outside."""
        return tree

    def compile(self, body: Callable) -> Callable:
        """The compiled body (state, frozen, batches) -> (state, metrics), see `make_step`."""
        return jax.pmap(
            body, axis_name=AXIS, in_axes=(None, None, 0), out_axes=None, donate_argnums=0
        )

    def map(self, function: Callable, in_axes) -> Callable:
        """`function` compiled for arguments [groups, …] where `in_axes` has 0, as pmap takes them;
        the results are [groups, …]. `AXIS` is the name of that axis inside.
        """
        return map_locally(function, in_axes)

    def rows(self, batch_size: int) -> np.ndarray:
        """The rows of a batch that devices of this process compute, int [n]."""
        return np.arange(batch_size)

    def batch(self, batch, leading=(), part=None):
        """Arrays [N, …] on the devices, for the body as [*leading, its share, …].

        part: (rows, batch size) where the arrays hold only these rows of each batch.
        """
        del part  # all of them, see `rows`
        return jax.device_put(shard_batch(batch, leading), split())

    def put(self, tree):
        """A tree of parameters on the devices."""
        return jax.device_put(tree, replicated())

    def placed(self, tree):
        """The same where the tree does not lie on the devices so already."""
        return placed(tree)

    def own(self, tree):
        """The same in memory of its own, which may be donated."""
        return replicate(tree)

    def split(self):
        """Sharding of arrays [groups, …] as mapped arguments."""
        return split()

    def gathered(self, tree):
        """Parameters whole, as NumPy arrays of their own."""
        return to_host(tree)

    def shown(self, tree):
        """Parameters as functions outside of this placement take them: on the local devices, or as
        NumPy arrays.
        """
        return tree

    def reading(self):
        """A context in which arrays of a file may be put on the default device whole."""
        return contextlib.nullcontext()

    def create(self, init: Callable, *arguments):
        """init(*arguments), a tree of parameters, compiled."""
        return jax.jit(init)(*arguments)

    def shapes(self, tree):
        """`jax.ShapeDtypeStruct` of the tree as parameters; without a sharding they are to be read
        into NumPy arrays.
        """
        return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), tree)


COPIES = Copies()


@dataclass(frozen=True)
class Sharded:
    """One mesh, the arrays cut by `sdjax.parallel.rules`: a body sees all of a batch.

    mesh: with the axes data, fsdp and tensor, over one process or several.
    """

    mesh: Mesh
    on_host: tuple[str, ...] = ()
    """Fields of a training's state that lie in the hosts' memory between updates."""

    @classmethod
    def over(cls, fsdp: int, tensor: int, devices=None) -> "Sharded":
        """The mesh of these devices, by default all of the job; what fsdp and tensor leave is the
        data axis.
        """
        devices = list(jax.devices() if devices is None else devices)
        count = len(devices)
        fsdp = count // tensor if fsdp == -1 else fsdp
        if not fsdp or count % (fsdp * tensor):
            raise SdjaxError(
                f"placement: fsdp {fsdp or -1} times tensor {tensor} must divide the {count} "
                "devices there are"
            )
        shape = (count // (fsdp * tensor), fsdp, tensor)
        try:
            grid = mesh_utils.create_device_mesh(shape, devices, allow_split_physical_axes=True)
        except (ValueError, NotImplementedError):
            # Several slices, or no torus it knows: the same mesh, with longer ways between chips.
            grid = np.array(devices).reshape(shape)
        return cls(Mesh(grid, (DATA, FSDP, TENSOR)))

    @property
    def fsdp(self) -> int:
        """Devices that share out the parameters."""
        return self.mesh.shape[FSDP]

    @property
    def tensor(self) -> int:
        """Devices that share out large products."""
        return self.mesh.shape[TENSOR]

    @property
    def groups(self) -> int:
        """How many parts a batch is cut into."""
        return self.mesh.shape[DATA] * self.fsdp

    @property
    def sharing(self) -> int:
        return self.mesh.size

    parts = 1

    def part(self):
        return jnp.int32(0)

    def mean(self, tree):
        return tree

    def settled(self, tree):
        def of(leaf, cut):
            if cut.memory_kind == _HOST:
                return jax.device_put(leaf, cut)
            return jax.lax.with_sharding_constraint(leaf, cut)

        return jax.tree.map(of, tree, self.shardings(tree))

    def keeping(self, name: str):
        return replace(self, on_host=(*self.on_host, name))

    def near(self, tree):
        return jax.device_put(tree, self.shardings(tree)) if self.on_host else tree

    def compile(self, body: Callable) -> Callable:
        @functools.cache
        def program(names):
            del names
            return jax.jit(body, donate_argnums=0, out_shardings=(program.cuts, self.whole()))

        def of(state):
            program.cuts = self.shardings(state)
            return program(jax.tree.structure(state))

        def call(state, frozen, batches):
            return of(state)(state, frozen, batches)

        call.lower = lambda state, *others: of(state).lower(state, *others)
        return call

    def whole(self):
        """Sharding of what each device has a copy of."""
        return NamedSharding(self.mesh, PartitionSpec())

    def map(self, function: Callable, in_axes) -> Callable:
        mapped = jax.vmap(function, in_axes, axis_name=AXIS, spmd_axis_name=SHARES)

        def cut(argument, axes):
            if axes is None:
                return argument
            if axes == 0:
                return jax.lax.with_sharding_constraint(argument, self.split())
            return type(argument)(*map(cut, argument, axes))

        return jax.jit(lambda *arguments: cut(mapped(*map(cut, arguments, in_axes)), 0))

    def rows(self, batch_size: int) -> np.ndarray:
        if batch_size % self.groups:
            return np.arange(batch_size)  # `batch` refuses it
        places = self.data_cut(0).addressable_devices_indices_map((batch_size,)).values()
        return np.unique(np.concatenate([np.arange(batch_size)[place] for place, in places]))

    def batch(self, batch, leading=(), part=None):
        cut = self.data_cut(len(leading))

        def of_part(x):
            rows, size = part
            x = np.asarray(x).reshape(*leading, len(rows), *x.shape[1:])

            def at(index):
                wanted = np.arange(size)[index[len(leading)]]
                own = (slice(None),) * len(leading) + (np.searchsorted(rows, wanted),)
                return x[own]

            return jax.make_array_from_callback((*leading, size, *x.shape[len(leading) + 1:]),
                                                cut, at)

        if part is not None and not part[1] % self.groups:
            return jax.tree.map(of_part, batch)

        def placed(x):
            x, groups = np.asarray(x), int(np.prod(leading, dtype=int))
            each, rest = divmod(len(x), groups * self.groups)
            if rest:
                raise SdjaxError(
                    f"a batch of {len(x) // groups} cannot be split over {self.groups} devices: "
                    f"choose a batch size that {self.groups} divides"
                )
            return self._global(x.reshape(*leading, each * self.groups, *x.shape[1:]), cut)

        return jax.tree.map(placed, batch)

    def put(self, tree):
        return jax.tree.map(self._global, tree, self.shardings(tree))

    def data_cut(self, leading: int):
        """Sharding of arrays [*leading, batch, …]."""
        return NamedSharding(self.mesh, PartitionSpec(*(None,) * leading, SHARES))

    def placed(self, tree):
        def of(leaf, cut):
            known = getattr(getattr(leaf, "sharding", None), "mesh", None)
            return leaf if known == self.mesh else self._global(leaf, cut)

        return jax.tree.map(of, tree, self.shardings(tree))

    def own(self, tree):
        # Nothing else holds what `create` or a checkpoint gave.
        return self.put(tree)

    def split(self):
        return NamedSharding(self.mesh, PartitionSpec(SHARES))

    def gathered(self, tree):
        if jax.process_count() > 1:
            # One at a time: a device holds one array whole, not the model.
            whole = jax.jit(lambda x: x, out_shardings=self.whole())
            return jax.tree.map(lambda x: np.array(whole(x).addressable_data(0)), tree)
        return to_host(tree)

    shown = gathered

    def reading(self):
        # Whole, a part of the model may be too large for the first device.
        return jax.default_device(jax.local_devices(backend="cpu")[0])

    def create(self, init: Callable, *arguments):
        shapes = jax.eval_shape(init, *arguments)
        return jax.jit(init, out_shardings=self.shardings(shapes))(*arguments)

    def shapes(self, tree):
        return jax.tree.map(
            lambda x, cut: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=cut),
            tree, self.shardings(tree),
        )

    def shardings(self, tree) -> Any:
        """A tree of shardings for a tree of arrays or shapes with parameters' names."""
        def of(path, one):
            cut = NamedSharding(self.mesh, one)
            field = getattr(path[0], "name", None) if path else None  # of a training's state
            return cut.with_memory_kind(_HOST) if field in self.on_host else cut

        return jax.tree.map_with_path(
            of, specs(tree, self.fsdp, self.tensor),
            is_leaf=lambda one: isinstance(one, PartitionSpec),
        )

    def _global(self, x, cut):
        """An array that each process has whole, cut over all of them."""
        if isinstance(x, jax.Array) and x.sharding == cut:
            return x
        if jax.process_count() == 1:
            return jax.device_put(x, cut)
        x = np.asarray(x)
        return jax.make_array_from_callback(x.shape, cut, lambda index: x[index])


def map_over_devices(function, items, place=COPIES):
    """The compiled `function(shared, *items)` with the items split over the devices.

    function: (a tree, `items` trees of arrays [n, …]) -> tree of arrays [n, …], where no item
      depends on another.
    place: where the shared tree lies; by default with a copy on each local device.

    Returns a function of the same arguments that takes any n and gives NumPy arrays; n is padded
    to a multiple of the devices by repeating the last item. It compiles once for a shape.
    """
    mapped = place.map(function, (None,) + (0,) * items)

    def call(shared, *arrays):
        devices = place.groups
        count = len(jax.tree.leaves(arrays)[0])
        rows = np.minimum(np.arange(count + -count % devices), count - 1)

        def split(x):
            return x[rows].reshape(devices, -1, *x.shape[1:])

        out = mapped(shared, *jax.tree.map(split, arrays))
        return jax.tree.map(lambda x: _fetched(x).reshape(-1, *x.shape[2:])[:count], out)

    return call


def _fetched(x):
    if x.is_fully_addressable:
        return np.asarray(x)
    return multihost_utils.process_allgather(x, tiled=True)
