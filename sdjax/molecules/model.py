"""A diffusion model of molecules: network, schedule, features, and the sizes that it draws."""

import dataclasses
import inspect
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from sdjax import diffusion
from sdjax.diffusion.samplers import SAMPLERS
from sdjax.diffusion.samplers.names import canonical_name
from sdjax.errors import SdjaxError
from sdjax.molecules import sampling
from sdjax.molecules.features import Features, Molecule
from sdjax.parallel import map_over_devices
from sdjax.weights.arrays import all_finite
from sdjax.weights.egnn import EGNN, edm_betas
from sdjax.weights.folder import read_json, read_model_index, write_json
from sdjax.weights.hub import locate

CLASS = "MoleculeDiffusion"
_NOTES = "molecules.json"
QM9_SIZES = {
    3: 1, 4: 4, 5: 5, 6: 9, 7: 16, 8: 49, 9: 124, 10: 362, 11: 807, 12: 1689, 13: 3060, 14: 5136,
    15: 7796, 16: 10644, 17: 13025, 18: 13364, 19: 13832, 20: 9482, 21: 9970, 22: 3393, 23: 4848,
    24: 539, 25: 1506, 26: 48, 27: 266, 29: 25,
}  # fmt: skip
"""Atoms -> how many of the 100,000 molecules that EDM's model of QM9 is trained on have them."""
BATCH = 64


@dataclasses.dataclass(frozen=True)
class Condition:
    """A property that molecules are asked for.

    mean, deviation: of the training set, the mean absolute one; the network is told (value −
    mean)/deviation. values: for each size, values of the training set at even parts of it, which
    are drawn from where none is asked for.
    """

    name: str
    unit: str
    mean: float
    deviation: float
    values: Mapping[int, tuple[float, ...]]

    @classmethod
    def of(cls, name: str, unit: str, sizes, values, parts: int = 100) -> "Condition":
        """Of the training set's sizes int [M] and values [M]."""
        mean = float(np.mean(values, dtype=np.float64))
        shares = np.linspace(0, 1, parts + 1)
        return cls(
            name, unit, mean, float(np.abs(values - mean).mean(dtype=np.float64)),
            {int(size): tuple(np.quantile(values[sizes == size], shares).tolist())
             for size in np.unique(sizes)},
        )  # fmt: skip

    def drawn(self, size: int, random) -> float:
        """A value of the training set's molecules of this size, or the nearest one there is."""
        nearest = min(self.values, key=lambda known: abs(known - size))
        own = self.values[nearest]
        return float(np.interp(random.random(), np.linspace(0, 1, len(own)), own))

    def told(self, values) -> np.ndarray:
        """What the network is told, float32 [n, 1]."""
        return ((np.asarray(values, np.float64) - self.mean) / self.deviation).astype(
            np.float32)[:, None]


class MoleculeDiffusion:
    """EDM (arXiv 2203.17003) and models like it.

    network: an `EGNN`. params: its parameters. scheduler: a scheduler_config.json. features: what
    an atom is. sizes: atoms -> how often. sampler, steps: where a call names none. condition: what
    it can be asked for, or None.
    """

    def __init__(
        self, network: EGNN, params, scheduler: Mapping[str, Any], features: Features,
        sizes: Mapping[int, int], *, sampler: str = "ddpm", steps: int | None = None,
        condition: Condition | None = None,
    ):  # fmt: skip
        self.network, self.params, self.scheduler = network, params, dict(scheduler)
        self.features, self.sizes, self.condition = features, dict(sizes), condition
        self.schedule = diffusion.schedule_from_config(self.scheduler)
        self.sampler, self.steps = sampler, steps or len(self.schedule)
        wanted = features.width - 3 + 1 + (condition is not None)
        if network.config.in_node_nf != wanted:
            raise SdjaxError(
                f"the network has {network.config.in_node_nf} inputs an atom, where "
                f"{', '.join(features.elements)}, the time and what else is said make {wanted}"
            )
        if not self.sizes or min(self.sizes) < 1:
            raise SdjaxError(f"sizes must say how often each number of atoms is, got {self.sizes}")
        self._program = None

    @property
    def largest(self) -> int:
        """Most atoms that it was trained with."""
        return max(self.sizes)

    @property
    def hydrogens(self) -> bool:
        """Whether hydrogens are among its atoms."""
        return "H" in self.features.elements

    @classmethod
    def from_pretrained(cls, source, *, dtype: str = "float32", config=None) -> "MoleculeDiffusion":
        """Of a folder that was saved here, or of EDM's own generative_model_ema.npy.

        config: for EDM's file a folder with the network's config.json, where it is not that of its
        model of QM9 with hydrogens. Raises SdjaxError for anything else.
        """
        path = locate(source)
        if path.is_dir():
            return cls._from_folder(path, dtype)
        network, params = EGNN.from_pretrained(path, dtype=dtype, config=config)
        betas = edm_betas(path)
        if betas is None:
            betas = np.asarray(diffusion.polynomial_schedule().betas).tolist()
        scheduler = {
            "_class_name": "DDPMScheduler", "trained_betas": betas, "clip_sample": False,
            "num_train_timesteps": len(betas), "prediction_type": "epsilon",
        }
        return cls(network, params, scheduler, Features(), QM9_SIZES)

    @classmethod
    def _from_folder(cls, folder: Path, dtype: str):
        index = read_model_index(folder)
        if index.get("_class_name") != CLASS:
            raise SdjaxError(f"{folder} holds a {index.get('_class_name')}, expected a {CLASS}")
        notes = read_json(folder / _NOTES)
        network, params = EGNN.from_pretrained(folder, dtype=dtype)
        scheduler = read_json(folder / "scheduler" / "scheduler_config.json")
        try:
            condition = notes["condition"]
            if condition is not None:
                values = {int(size): tuple(own) for size, own in condition["values"].items()}
                condition = Condition(**{**condition, "values": values})
            features = {**notes["features"]}
            for name in ("elements", "scales"):
                features[name] = tuple(features[name])
            return cls(
                network, params, scheduler, Features(**features),
                {int(size): int(count) for size, count in notes["sizes"].items()},
                sampler=notes["sampler"], steps=notes["steps"], condition=condition,
            )
        except SdjaxError as error:
            raise SdjaxError(f"{folder}: {error}") from error
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise SdjaxError(
                f"{folder / _NOTES} is not what {CLASS} writes: {type(error).__name__}: {error}"
            ) from error

    def save_pretrained(self, folder, dtype: str = "float32") -> None:
        """Writes all of it into a folder."""
        folder = Path(folder)
        EGNN(self.network.config).save_pretrained(self.params, folder / EGNN.part, dtype)
        write_json(folder / "scheduler" / "scheduler_config.json", self.scheduler)
        write_json(folder / _NOTES, {
            "features": dataclasses.asdict(self.features),
            "sizes": {str(size): int(count) for size, count in self.sizes.items()},
            "sampler": self.sampler, "steps": self.steps,
            "condition": None if self.condition is None else dataclasses.asdict(self.condition),
        })
        write_json(folder / "model_index.json", {
            "_class_name": CLASS, EGNN.part: ["sdjax", "EGNN"],
            "scheduler": ["diffusers", self.scheduler["_class_name"]],
        })

    def table(self, steps: int | None = None, sampler: str | None = None, **options):
        """The sampler's `Table`; more options as `sdjax.sampler` takes them."""
        name = canonical_name(sampler or self.sampler, SAMPLERS)[0]
        if steps is None:
            steps = self.steps if sampler is None else min(self.steps, len(self.schedule))
        if "spacing" in inspect.signature(SAMPLERS[name].grid).parameters:
            listed = options.get("timesteps") is not None or options.get("sigmas") is not None
            options = options if listed else {"spacing": "trailing", **options}
        prediction = self.scheduler["prediction_type"]
        return diffusion.sampler(
            sampler or self.sampler, self.schedule, steps, prediction_type=prediction, **options
        )

    def generate(
        self, count: int = 1, *, atoms: int | None = None, value: float | None = None,
        steps: int | None = None, sampler: str | None = None, seed: int = 0,
        batch_size: int = BATCH, params=None, **options,
    ) -> list[Molecule]:  # fmt: skip
        """Molecules of the seeds seed, seed + 1, …; each depends on its seed alone.

        Args:
          count: how many.
          atoms: of each; drawn as the training set has them where None.
          value: of the model's property, in its unit; drawn likewise where None.
          steps, sampler: the model's own where None.
          seed: of the first.
          batch_size: made at once.
          params: in place of the model's own.
          options: of the sampler, see `sdjax.sampler`.

        Raises SdjaxError for what the model cannot be asked for.
        """
        self._check(count, atoms, value, batch_size)
        table = self.table(steps, sampler, **options)
        sizes, values = self.drawn(count, atoms, value, seed)
        seeds = np.arange(seed, seed + count, dtype=np.uint32)
        places = max(self.largest, atoms or 0)
        mask = (np.arange(places) < sizes[:, None])[..., None].astype(np.float32)
        context = None if self.condition is None else self.condition.told(values)
        shared = (self.params if params is None else params, table)
        found, size = [], min(batch_size, count)
        for start in range(0, count, size):
            # The last batch is filled up, so that all run the program of one shape.
            rows = np.minimum(np.arange(start, start + size), count - 1)
            given = (mask[rows], seeds[rows], None if context is None else context[rows])
            x = self._run(shared, given)[:count - start]
            if not all_finite(x):
                raise SdjaxError(
                    "molecules came out as numbers that are not finite: take more steps, or "
                    "another sampler"
                )
            found += self.features.molecules(x, mask[start:start + len(x)])
        return found

    def _run(self, shared, given):
        if self._program is None:
            last, width, network = len(self.schedule) - 1, self.features.width, self.network

            def made(shared, items):
                params, table = shared
                mask, seeds, context = items
                keys = jax.vmap(jax.random.key)(seeds)
                return sampling.sample(
                    network, params, table, jnp.float32(last), mask, context, keys, width)

            self._program = map_over_devices(made, items=1)
        return self._program(shared, given)

    def _check(self, count, atoms, value, batch_size):
        for name, number in (("count", count), ("batch_size", batch_size)):
            if number < 1:
                raise SdjaxError(f"{name} must be at least 1, got {number}")
        if atoms is not None and atoms < 1:
            raise SdjaxError(f"atoms must be at least 1, got {atoms}")
        if value is not None and self.condition is None:
            raise SdjaxError("this model was not trained on a property: leave value out")
        if value is not None and not np.isfinite(value):
            raise SdjaxError(f"value must be a finite number, got {value}")

    def drawn(self, count, atoms=None, value=None, seed=0):
        """(atoms int [count], what each is asked for, float [count], [] without a property), as
        `generate` takes them from each molecule's own seed.
        """
        numbers = np.array(sorted(self.sizes))
        shares = np.cumsum([self.sizes[number] for number in numbers], dtype=float)
        sizes, values = [], []
        for own in range(seed, seed + count):
            random = np.random.default_rng(own)
            place = np.searchsorted(shares, random.random() * shares[-1], side="right")
            sizes.append(int(numbers[place]) if atoms is None else atoms)
            if self.condition is not None:
                drawn = self.condition.drawn(sizes[-1], random)
                values.append(drawn if value is None else value)
        return np.array(sizes), np.array(values)

