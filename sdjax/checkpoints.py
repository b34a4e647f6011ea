"""Training checkpoints by Orbax: asynchronous, whole or absent, kept by number and by interval.

One step of a checkpoint folder holds `arrays` (a tree of NumPy arrays) and `notes` (JSON: data
position, configuration, whatever else the run wants back). Orbax writes a step beside its final
name and renames it when it is complete, so that a killed program leaves no half checkpoint.
"""

import contextlib
import logging
import shutil
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
from etils import epath

from .errors import SdjaxError
from .mirror import place_of
from .parallel import to_host
from .stores import address, scheme_of


VALIDATION = "validation_loss"
MARGIN = 2**20  # bytes that a checkpoint takes beside its arrays, at most


class Checkpoints:
    """The checkpoints of one run, in `folder`.

    keep: newest ones kept. keep_every: also keep for good each step that this divides (0: none).
    The one of the least validation loss is kept beside them.
    read_only: change nothing in the folder, which must be there. Without it, what a killed run left
      unfinished is removed, so that no other run may be writing there.
    """

    def __init__(self, folder, keep=2, keep_every=0, read_only=False):
        self._remote = scheme_of(folder) is not None
        self.folder = epath.Path(address(folder)) if self._remote else Path(folder).absolute()
        self.where, self._failed = place_of(folder), False
        # Orbax reports every phase of a save, and an error once a thread; it is raised as well.
        logging.getLogger("absl").setLevel(logging.CRITICAL)
        if read_only:
            options = ocp.CheckpointManagerOptions(read_only=True)
        else:
            options = ocp.CheckpointManagerOptions(
                best_fn=_validation,
                best_mode="min",
                preservation_policy=_policy(keep, keep_every),
                enable_async_checkpointing=True,
                cleanup_tmp_directories=True,
            )
            try:
                self.folder.mkdir(parents=True, exist_ok=True)
            except OSError as error:
                raise SdjaxError(f"cannot write checkpoints to {self.where}: {error}") from error
        self._manager = ocp.CheckpointManager(self.folder, options=options)

    def latest(self):
        """Step of the newest whole checkpoint, or None."""
        return self._manager.latest_step()

    def steps(self):
        """Steps of all whole checkpoints, in order."""
        return sorted(self._manager.all_steps())

    def best(self):
        """(step, validation loss) of the checkpoint with the least of it; None where none has any.
        """
        losses = {step: self.notes(step).get(VALIDATION) for step in self.steps()}
        found = [(loss, -step) for step, loss in losses.items() if loss is not None]
        return (-min(found)[1], min(found)[0]) if found else None

    def save(self, step, state, notes):
        """Begin to save a tree of arrays and a JSON dict as `step`; the writing goes on behind.

        Where the notes have a "validation_loss", the checkpoint of the least is kept.
        The arrays are copied before this returns, so they may be donated at once; those that are
        cut over devices are written by whoever holds the parts. A step that is already there is
        left as it is.
        """
        if step == self.latest():
            return
        arrays = to_host(state) if _whole(state) else _copied(state)
        notes = {**notes, "arrays": _shapes(arrays)}
        with self._told():
            self._manager.wait_until_finished()  # older ones make room only then
            self._check_room(step, arrays)
            self._manager.save(
                step,
                args=ocp.args.Composite(
                    arrays=ocp.args.PyTreeSave(arrays), notes=ocp.args.JsonSave(notes)
                ),
                metrics={VALIDATION: notes[VALIDATION]} if VALIDATION in notes else None,
            )

    def _check_room(self, step, arrays):
        """SdjaxError where a full disk can be foreseen: Orbax leaves an unfinished folder."""
        if self._remote:
            return
        size = sum(x.nbytes for x in jax.tree.leaves(arrays)) + MARGIN
        free = shutil.disk_usage(self.folder).free
        if free < size:
            raise SdjaxError(
                f"no room for the checkpoint of step {step} in {self.where}: it takes "
                f"{size / 1e6:,.1f} MB, {free / 1e6:,.1f} MB are free; {self._kept()}"
            )

    def _kept(self):
        steps = self.steps()
        kept = f"that of step {steps[-1]} stays" if steps else "none was made before"
        return f"{kept}: make room, and the same command goes on from there"

    @contextlib.contextmanager
    def _told(self):
        """What writing raises, here or behind, as one line: Orbax has errors of many kinds."""
        try:
            yield
        except SdjaxError:
            raise
        except Exception as error:
            self._failed = True
            first = (str(error).splitlines() or [""])[0]
            raise SdjaxError(
                f"cannot write a checkpoint to {self.where}: {first[:200]}; {self._kept()}"
            ) from error

    def notes(self, step):
        """The JSON dict saved with `step`."""
        args = ocp.args.Composite(notes=ocp.args.JsonRestore())
        return self._read(step, args)["notes"]

    def _read(self, step, args):
        """What Orbax reads of a step; its errors are of many kinds."""
        try:
            return self._manager.restore(step, args=args)
        except (jax.errors.JaxRuntimeError, MemoryError):
            raise
        except Exception as error:
            first = (str(error).splitlines() or [type(error).__name__])[0]
            others = [str(other) for other in self.steps() if other != step]
            rest = f"that of step {others[-1]}" if others else "the beginning"
            raise SdjaxError(
                f"the checkpoint of step {step} in {self.where} is damaged, {first[:200]}: remove "
                f"its folder {step}, and the same command goes on from {rest}"
            ) from error

    def restore(self, step, like):
        """(state, notes) of `step`; `like` is a tree of arrays or ShapeDtypeStructs of that shape.

        The state is of NumPy arrays, or where the structs have shardings of arrays that lie so,
        however they lay when they were saved.

        Raises SdjaxError, naming the first difference, where the checkpoint is of another
        architecture or optimizer; no array is read then.
        """
        self.check(step, like)
        args = ocp.args.Composite(arrays=ocp.args.PyTreeRestore(
            like, restore_args=jax.tree.map(_restored, like)
        ))
        return self._read(step, args)["arrays"], self.notes(step)

    def check(self, step, like):
        """SdjaxError, naming the first difference, where `step` holds another tree than `like`.

        Only the notes are read.
        """
        saved, wanted = self.notes(step)["arrays"], _shapes(like)
        where = f"the checkpoint of step {step} in {self.where}"
        remedy = "train into another folder, or use the configuration that made it"
        for name in wanted:
            if name not in saved:
                raise SdjaxError(f"{where} has no {name}, which this configuration needs: {remedy}")
        for name, shape in saved.items():
            if name not in wanted:
                raise SdjaxError(f"{where} has {name}, which this configuration lacks: {remedy}")
            if shape != wanted[name]:
                raise SdjaxError(
                    f"{where} has {name} of {shape}, this configuration {wanted[name]}: {remedy}"
                )

    def wait(self):
        """Return when everything begun is on disk; errors of the background writing come here."""
        with self._told():
            self._manager.wait_until_finished()

    def close(self):
        """Wait, and release Orbax's threads."""
        told = self._failed
        try:
            with self._told():
                self._manager.close()
        except SdjaxError:
            if not told:
                raise


def _validation(metrics):
    return metrics[VALIDATION]


def _policy(newest, every):
    """Which checkpoints stay."""
    policies = ocp.checkpoint_managers
    best = policies.BestN(
        get_metric_fn=_validation, reverse=True, n=1, keep_checkpoints_without_metrics=False
    )
    steps = [policies.EveryNSteps(every)] if every else []
    return policies.AnyPreservationPolicy([policies.LatestN(newest), best, *steps])


def _whole(tree):
    """Whether each array has a copy on each of its devices, all of this process."""
    arrays = [x for x in jax.tree.leaves(tree) if isinstance(x, jax.Array)]
    return all(x.is_fully_addressable and x.is_fully_replicated for x in arrays)


def _copied(tree):
    if jax.default_backend() != "cpu":
        return tree  # Orbax copies it to the host before it returns
    return jax.tree.map(jnp.copy, tree)  # there it would write what is donated meanwhile


def _restored(leaf):
    cut = getattr(leaf, "sharding", None)
    if not isinstance(leaf, jax.ShapeDtypeStruct) or cut is None:
        return ocp.RestoreArgs(restore_type=np.ndarray, dtype=leaf.dtype)
    return ocp.ArrayRestoreArgs(
        sharding=cut, global_shape=leaf.shape, dtype=leaf.dtype, strict=True
    )


def _shapes(tree):
    """{path: "float32[3, 4]"} of a tree of arrays or ShapeDtypeStructs."""
    leaves = jax.tree.leaves_with_path(tree)
    return {
        jax.tree_util.keystr(path, simple=True, separator="/"): f"{x.dtype}{list(x.shape)}"
        for path, x in leaves
    }
