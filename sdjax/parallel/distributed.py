"""Several processes, of which each has a part of the devices."""

import os

import jax

from sdjax.errors import SdjaxError

_PROCESSES = {
    "SLURM_STEP_NUM_TASKS": "number",  # of srun; in a batch script itself it is absent or 1
    "OMPI_COMM_WORLD_SIZE": "number",  # Open MPI
    "PMI_SIZE": "number",  # MPICH and Intel MPI
    "MEGASCALE_NUM_SLICES": "number",  # slices of TPUs
    "TPU_WORKER_HOSTNAMES": "names",  # a TPU pod
}
"""What launchers tell their processes of how many there are."""


def check_one_process():
    """SdjaxError where this is one of several processes of a job, which training does not support.

    A launcher's variables are looked at first: started by it without jax.distributed, each process
    would take itself for the only one. Then JAX is asked, which starts it.
    """
    for name, kind in _PROCESSES.items():
        value = os.environ.get(name, "")
        count = len(value.split(",")) if kind == "names" else int(value) if value.isdigit() else 1
        if count > 1:
            raise _several(count, f", or, where each trains on its own, unset {name}={value}")
    if jax.process_count() > 1:
        raise _several(jax.process_count())


def _several(count, way_out=""):
    return SdjaxError(
        f"this is one of {count} processes, and training on several together is not supported yet: "
        f"start a single one{way_out}"
    )
