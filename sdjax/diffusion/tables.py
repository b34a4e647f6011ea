"""A sampler as a table of coefficients, one row an evaluation of the network.

Every sampler here is linear in what it has seen. A row is carried out as

    prediction = denoise(input_scale · x, timestep)
    x_0        = o·(p·x + q·prediction)                      then clipped, where asked
    D          = u·x + v·x_0 + w·prediction
    (x, y)     = update · (x, y, D, D₁, D₂, D₃)              D₁ … D₃: the remembered D, newest first
    x          = x + noise_scale · exp(½·spread·fraction) · noise

where y is a second register (the start of a step with several evaluations, or a corrected sample)
and `fraction` is the variance fraction of a network with learned variance.
"""

import dataclasses

import jax
import numpy as np

from sdjax.diffusion.guidance import per_item
from sdjax.diffusion.host import on_the_host
from sdjax.errors import SdjaxError

HISTORY = 3  # D₁, D₂ and D₃
SMALLEST = 64  # rows of the smallest table

SKIP, PERTURB, EVALUATE = 0, 1, 2


@dataclasses.dataclass(frozen=True)
class Row:
    """One evaluation in float64, as a sampler writes it; short coefficient tuples end in zeros.

    A row without a timestep evaluates nothing; it adds its noise, or does nothing at all.
    """

    timestep: float | None = None
    level: tuple = (1.0, 0.0)  # signal and noise in x before the row, in x's own scale
    input_scale: float = 1.0
    x_0: tuple = (1.0, 0.0, 1.0)  # o, p, q
    derivative: tuple = (0.0, 1.0, 0.0)  # u, v, w
    x: tuple = (1.0,)  # over (x, y, D, D₁, D₂, D₃)
    y: tuple = (0.0, 1.0)
    noise: float = 0.0
    spread: float = 0.0
    remember: bool = True
    interval: tuple = (0.0, 0.0)  # σ/α from and to, what Brownian noise is an increment over

    @property
    def kind(self):
        if self.timestep is not None:
            return EVALUATE
        return PERTURB if self.noise else SKIP


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Rows:
    """The rows of a table, column by column; `Row` says what each one means."""

    kind: jax.Array  # int32[rows]: SKIP, PERTURB or EVALUATE
    timestep: jax.Array  # [rows]
    input_scale: jax.Array  # [rows]
    x_0: jax.Array  # [rows, 3]
    derivative: jax.Array  # [rows, 3]
    update: jax.Array  # [rows, 2, 3 + HISTORY]: of x and of y
    noise: jax.Array  # [rows]
    spread: jax.Array  # [rows]
    remember: jax.Array  # bool[rows]
    interval: jax.Array  # [rows, 2]: arctan(σ/α) from and to, over π/2
    after: jax.Array  # [rows, 2]: signal and noise in x once the row is done


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Table:
    """A sampler for one schedule and step count: a pytree of arrays.

    Tables are padded with rows that do nothing, so that other steps and samplers run the same
    compiled program. All fields are traced; `threshold` may be None, which is another program.

    `stacked` makes one of several, a table for each item of a batch: every field then begins with
    that axis.
    """

    rows: Rows
    initial_scale: jax.Array  # []: of the array that `sample` is given
    start: jax.Array  # [2]: signal and noise left where the table starts
    clip: jax.Array  # []: bound of |x_0|, or infinity
    threshold: jax.Array | None  # [2]: quantile and largest bound of dynamic thresholding

    @property
    @on_the_host
    def timesteps(self):
        """The timesteps of the evaluations in their order, as a NumPy vector."""
        return np.asarray(self.rows.timestep)[np.asarray(self.rows.kind) == EVALUATE]

    @property
    @on_the_host
    def evaluations(self):
        """How often the network is evaluated; of stacked tables, for all of them together."""
        return len(self.evaluating)

    @property
    @on_the_host
    def evaluating(self):
        """The numbers of the rows that evaluate the network, as a NumPy vector."""
        kind = np.asarray(self.rows.kind)
        return np.flatnonzero((kind == EVALUATE).any(axis=tuple(range(kind.ndim - 1))))

    @property
    @on_the_host
    def noise_rows(self):
        """The numbers of the rows that add noise, as a NumPy vector."""
        return np.flatnonzero(np.asarray(self.rows.noise) * (np.asarray(self.rows.kind) != SKIP))

    @on_the_host
    def part(self, first, last):
        """The table with only rows first … last - 1 carried out, for an `Underway` sample."""
        kind = np.asarray(self.rows.kind)
        number = np.arange(kind.shape[-1])
        kind = np.where((first <= number) & (number < last), kind, np.int32(SKIP))
        return dataclasses.replace(self, rows=dataclasses.replace(self.rows, kind=kind))

    def noised(self, x_0, noise):
        """What to start from instead of noise where `x_0` [batch, ...] is to be kept in part."""
        signal, rest = (per_item(self.start[..., i], x_0) for i in (0, 1))
        return signal * x_0 + rest * noise


@on_the_host
def stacked(tables):
    """Tables of any steps and samplers as one, for a batch whose item i is sampled by table i."""
    size = max(len(table.rows.kind) for table in tables)

    def padded(column):
        return np.pad(column, [(0, size - len(column))] + [(0, 0)] * (np.ndim(column) - 1))

    if len({table.threshold is None for table in tables}) > 1:
        raise SdjaxError("tables with and without a threshold do not make one: expected either")
    full = [
        dataclasses.replace(table, rows=jax.tree.map(padded, table.rows)) for table in tables
    ]
    return jax.tree.map(lambda *leaves: np.stack(leaves), *full)


def build_table(
    rows, *, initial_scale, start, clip=None, threshold=None, pad_to=None, dtype=np.float32
):  # fmt: skip
    """Rows stacked, padded and rounded to `dtype`.

    Args:
      rows: list of `Row`.
      initial_scale: what unit-variance noise is multiplied with to be the first x.
      start: (signal, noise) of the first x, in the variance-preserving scale.
      clip: bound of |x_0|, or None.
      threshold: (quantile, largest bound), or None.
      pad_to: number of rows; by default the next power of two from 64 on.
    """
    size = max(SMALLEST, 1 << (len(rows) - 1).bit_length()) if pad_to is None else pad_to
    if size < len(rows):
        raise SdjaxError(f"the table needs {len(rows)} rows, pad_to allows {size}: raise pad_to")
    # What a row leaves is what the next one finds; the last leaves the sample.
    after = [row.level for row in rows[1:]] + [(1.0, 0.0)] * (size - len(rows) + 1)
    rows = rows + [Row()] * (size - len(rows))

    def column(of, width):
        cells = [tuple(of(row)) for row in rows]
        cells = np.array([cell + (0.0,) * (width - len(cell)) for cell in cells])
        if np.iscomplexobj(cells) or not np.isfinite(cells).all():
            raise SdjaxError(
                "the sampler's coefficients are no finite numbers: its options do not fit this "
                "schedule; other levels (sigma_min, sigma_max, rho, sigmas, final) may"
            )
        return cells.astype(dtype)

    def scalar(of):
        return column(lambda row: (of(row),), 1)[:, 0]

    width = 3 + HISTORY
    return Table(
        rows=Rows(
            kind=np.array([row.kind for row in rows], np.int32),
            timestep=scalar(lambda row: row.timestep or 0.0),
            input_scale=scalar(lambda row: row.input_scale),
            x_0=column(lambda row: row.x_0, 3),
            derivative=column(lambda row: row.derivative, 3),
            update=np.stack(
                [column(lambda row: row.x, width), column(lambda row: row.y, width)], axis=1
            ),
            noise=scalar(lambda row: row.noise),
            spread=scalar(lambda row: row.spread),
            remember=np.array([row.remember for row in rows]),
            interval=column(lambda row: np.arctan(row.interval) / (np.pi / 2), 2),
            after=np.array(after).astype(dtype),
        ),
        initial_scale=np.asarray(initial_scale, dtype),
        start=np.asarray(start, dtype),
        clip=np.asarray(np.inf if clip is None else clip, dtype),
        threshold=None if threshold is None else np.asarray(threshold, dtype),
    )
