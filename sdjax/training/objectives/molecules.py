"""Diffusion of molecules, points with features: the objective of EDM (arXiv 2203.17003)."""

from dataclasses import dataclass, field, replace
from typing import Literal

import jax.numpy as jnp

from sdjax.errors import SdjaxError, check_at_least
from sdjax.models.egnn import DIMENSIONS, EGNN, EGNNConfig
from sdjax.molecules.features import Features
from sdjax.molecules.sampling import predict, projection
from sdjax.training.loop.config import RunConfig

from .denoising import DenoisingConfig, ScheduleConfig, check_known, losses, noised
from .sheets import SheetConfig

HEAVY = ("C", "N", "O", "F")


@dataclass(frozen=True)
class MoleculeRun(RunConfig):
    """Training of EDM's diffusion on molecules."""

    egnn: EGNNConfig = field(default_factory=EGNNConfig)
    """Its in_node_nf is set from what an atom is."""
    denoising: DenoisingConfig = field(default_factory=lambda: DenoisingConfig(
        ScheduleConfig("polynomial_2", num_timesteps=1001), prediction="epsilon"
    ))
    hydrogens: bool = False
    """Whether hydrogens are atoms of their own; else they follow from what bonds are left."""
    max_heavy_atoms: int = 9
    """Molecules with more atoms beside hydrogens are left out."""
    charges: bool = True
    """Whether an atom's number is a feature beside the mark of its element."""
    condition: Literal[
        "", "dipole", "polarizability", "homo", "lumo", "gap", "heat_capacity"
    ] = ""
    """What the model is told of a molecule, to be asked for it later; empty for nothing."""
    buckets: tuple[int, ...] = ()
    """Numbers of atoms up to which molecules are batched together; none for one size of all."""
    sheet: SheetConfig = field(default_factory=lambda: SheetConfig(
        images=24, sampler="unipc", steps=50, guidance_scale=1.0
    ))

    def __post_init__(self):
        super().__post_init__()
        check_known(self.denoising)
        check_at_least(1, self, "max_heavy_atoms")
        if min(self.buckets, default=1) < 1 or list(self.buckets) != sorted(set(self.buckets)):
            raise SdjaxError(f"buckets must be rising numbers of atoms, got {self.buckets}")
        denoising = self.denoising
        if denoising.noise_offset or denoising.pyramid_iterations:
            raise SdjaxError("noise_offset and pyramid_iterations are of pictures: set them to 0")
        if self.sheet.guidance_scale != 1 or self.sheet.prompts:
            raise SdjaxError("molecules have no prompts: sheet.guidance_scale must be 1")

    @property
    def features(self) -> Features:
        """What an atom is."""
        return Features((("H",) if self.hydrogens else ()) + HEAVY, self.charges)

    @property
    def network(self) -> EGNN:
        """The network, its inputs counted."""
        inputs = self.features.width - DIMENSIONS + 1 + bool(self.condition)
        return EGNN(replace(self.egnn, in_node_nf=inputs), self.dtype, self.remat_kind)


@dataclass(frozen=True)
class MoleculeObjective:
    """Denoising of molecules. The trainable tree is {"egnn": …}; nothing is frozen."""

    config: MoleculeRun

    def init(self, key, frozen=None):
        """Fresh trainable parameters."""
        del frozen
        network = self.config.network
        widths = network.config.in_node_nf, DIMENSIONS, 1
        given = [jnp.zeros((1, 2, width)) for width in widths]
        return {"egnn": network.init(key, *given)["params"]}

    def loss(self, params, frozen, batch, keys):
        """Of batch["x"] float32 [b, N, width] as `Features` makes it, batch["mask"] [b, N, 1], and,
        for a property, batch["context"] [b, 1].

        Half the squared error over all N · width numbers, as EDM's "l2"; at timestep 0 the places'
        alone, where features are read from the sample itself.
        """
        del frozen
        config = self.config
        schedule, mask = config.denoising.schedule.build(), batch["mask"]
        given = noised(config.denoising, schedule, batch["x"], keys, project=projection(mask))
        time = given.t.astype(jnp.float32) / (len(schedule) - 1)
        prediction = predict(
            config.network, params["egnn"], given.x_t, time, mask, batch.get("context"))
        counted = jnp.arange(given.x_t.shape[-1]) < DIMENSIONS
        counted = mask * (counted | (given.t > 0)[:, None, None])
        each = losses(config.denoising, schedule, given, prediction, mask=counted)
        return 0.5 * each.mean(), {}
