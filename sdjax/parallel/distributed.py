"""Several processes that train together, on one host or many."""

import contextlib
import itertools
import os
import re
import sys
import threading
import time
import traceback
from dataclasses import dataclass

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from sdjax.errors import SdjaxError

_LAUNCHERS = {
    "SLURM_STEP_NUM_TASKS": "number",  # of srun; in a batch script itself it is absent or 1
    "OMPI_COMM_WORLD_SIZE": "number",  # Open MPI
    "PMI_SIZE": "number",  # MPICH and Intel MPI
    "MEGASCALE_NUM_SLICES": "number",  # slices of TPUs
    "TPU_WORKER_HOSTNAMES": "names",  # a TPU pod of GKE, by JobSet
}
"""What launchers tell their processes of how many there are."""

BEAT = 1.0  # seconds between signs of life
FOREVER = 7 * 24 * 3600  # seconds: who dies while others wait is missed by its signs of life


@dataclass(frozen=True)
class Distributed:
    """How the processes of a job find each other; the same command is given to all of them.

    TPU pods, SLURM, GKE's JobSet and Open MPI tell their processes, and nothing is to be set.
    """

    coordinator_address: str | None = None
    """host:port where process 0 can be reached by all."""
    num_processes: int | None = None
    process_id: int | None = None
    """Of this one, from 0 on."""
    patience: float = 60.0
    """Seconds without a sign of life after which a process counts as dead, and all end."""

    def __post_init__(self):
        if not self.patience > 0:
            raise SdjaxError(f"distributed.patience must be above 0, got {self.patience:g}")
        given = self.coordinator_address, self.num_processes, self.process_id
        if any(value is not None for value in given) and None in given:
            raise SdjaxError(
                "distributed: coordinator_address, num_processes and process_id go together; leave "
                "all out on TPU pods, SLURM, GKE and Open MPI"
            )
        if self.coordinator_address is None:
            return
        if not self.coordinator_address.rpartition(":")[2].isdigit():
            raise SdjaxError(
                "distributed.coordinator_address must be host:port, got "
                f"{self.coordinator_address!r}"
            )
        if not 0 <= self.process_id < self.num_processes:
            raise SdjaxError(
                f"distributed.process_id must be in 0 … {self.num_processes - 1}, got "
                f"{self.process_id}"
            )


def launched() -> int:
    """How many processes the launcher says that there are, 1 where there is none."""
    counts = [1]
    for name, kind in _LAUNCHERS.items():
        value = os.environ.get(name, "")
        if kind == "names" and re.fullmatch(r"[^\s,]+(,[^\s,]+)*", value):
            counts.append(value.count(",") + 1)  # libtpu leaves a sentence there on other machines
        elif kind == "number" and value.isdigit():
            counts.append(int(value))
    return max(counts)


def leader() -> bool:
    """Whether this process is the one that prints, draws and writes what is written once."""
    return not _active() or jax.process_index() == 0


@contextlib.contextmanager
def together(config: Distributed = Distributed()):
    """Meet the other processes of the job, where it has several, and end with them.

    Whatever ends one of them ends all, with a line that says what; so does one that gives no sign
    of life for `config.patience` seconds. Before JAX's first computation. Raises SdjaxError where
    they do not meet.
    """
    if config.num_processes in (None, 1) and not _expected(config):
        yield
        return
    _start(config)
    if jax.process_count() == 1:
        yield
        return
    watch = _Watch(config.patience)
    try:
        yield
        meet()
    except BaseException as error:
        watch.leave(error)
    watch.stop()
    jax.distributed.shutdown()


def _expected(config):
    return config.coordinator_address is None and (launched() > 1 or _on_tpu_vm())


def _on_tpu_vm():
    """A TPU VM of a pod says so by its metadata alone, for which JAX asks."""
    from jax._src.clusters.cloud_tpu_cluster import GceTpuCluster

    return GceTpuCluster.is_env_present()


def _start(config):
    # SIGTERM is the training loop's; elsewhere it ends the process, as always.
    jax.config.update("jax_enable_preemption_service", False)
    try:
        jax.distributed.initialize(
            config.coordinator_address, config.num_processes, config.process_id,
            heartbeat_timeout_seconds=max(10, int(2 * config.patience)),
            shutdown_timeout_seconds=60,
        )
    except Exception as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise SdjaxError(
            f"the processes of this job cannot meet: {reason}; set "
            "--distributed.coordinator-address, .num-processes and .process-id"
        ) from error


def _client():
    from jax._src import distributed

    return distributed.global_state.client


def _active():
    return _client() is not None and jax.process_count() > 1


_meetings = itertools.count()


def meet() -> None:
    """Return when all processes are here."""
    if _active():
        _client().wait_at_barrier(f"sdjax/{next(_meetings)}", FOREVER * 1000)


@contextlib.contextmanager
def in_turn():
    """The body in process 0 first, then in the others, which find what it has written."""
    if not leader():
        meet()
    yield
    if leader():
        meet()


class Votes:
    """Numbers that all processes agree on, without waiting: the largest that one of them gave."""

    def __init__(self):
        self._alone = not _active()
        if not self._alone:
            mesh = Mesh(np.array(jax.devices()), ("device",))
            self._cut = NamedSharding(mesh, PartitionSpec("device"))
            whole = NamedSharding(mesh, PartitionSpec())
            self._most = jax.jit(lambda x: x.max(), out_shardings=whole)

    def cast(self, number: int):
        """Begin to agree; all processes do, in the same order."""
        if self._alone:
            return number
        given = np.full(1, number, np.int32)
        count = (len(jax.devices()),)
        return self._most(jax.make_array_from_callback(count, self._cut, lambda _: given))

    def read(self, vote) -> int:
        """What `cast` gave, decided."""
        return vote if self._alone else int(np.asarray(vote.addressable_data(0)))


def _chain(error):
    """An error and what it came of."""
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


class _Watch:
    """Signs of life to the others, and an end of this process where one of theirs is missing."""

    def __init__(self, patience):
        self._own, self._count = jax.process_index(), jax.process_count()
        self._patience, self._stopped = patience, threading.Event()
        self._thread = threading.Thread(target=self._run, name="sdjax-watch", daemon=True)
        self._thread.start()

    def _run(self):
        began = time.monotonic()
        seen = {number: (None, began) for number in range(self._count)}
        failed = 0
        for beat in itertools.count():
            if self._stopped.wait(BEAT):
                return
            try:
                client, now = _client(), time.monotonic()
                client.key_value_set(f"sdjax/alive/{self._own}", str(beat), allow_overwrite=True)
                gone = client.key_value_dir_get("sdjax/gone/")
                alive = client.key_value_dir_get("sdjax/alive/")
                failed = 0
            except Exception:
                failed += 1
                if failed > 2 and not self._stopped.is_set():
                    self._end("process 0, where all meet, is gone")
                continue
            for key, why in gone:
                if int(key.rsplit("/", 1)[1]) != self._own and not self._stopped.is_set():
                    self._end(f"process {key.rsplit('/', 1)[1]} has ended: {why}")
            for key, value in alive:
                number = int(key.rsplit("/", 1)[1])
                if seen[number][0] != value:
                    seen[number] = value, now
            for number, (_, last) in seen.items():
                if now - last > self._patience and not self._stopped.is_set():
                    self._end(f"process {number} gives no sign of life for {now - last:.0f} s")

    def _end(self, what, status=2):
        print(
            f"error: process {self._own} of {self._count} ends: {what}; what was saved stays: the "
            "same command goes on from there",
            file=sys.stderr, flush=True,
        )
        sys.stdout.flush()
        os._exit(status)

    def leave(self, error):
        """End this process by an error of its own, and tell the others."""
        if isinstance(error, (SdjaxError, KeyboardInterrupt)):
            why = str(error) or "interrupted"
        else:
            why = f"{type(error).__name__}: {(str(error).splitlines() or [''])[0]}"
            if not isinstance(error, jax.errors.JaxRuntimeError):
                traceback.print_exception(error)
        if any(isinstance(one, jax.errors.JaxRuntimeError) for one in _chain(error)):
            # Most likely it is another process that is gone: who watches says which.
            time.sleep(self._patience + 5 * BEAT)
        self._stopped.set()
        with contextlib.suppress(Exception):
            _client().key_value_set(f"sdjax/gone/{self._own}", why[:500], allow_overwrite=True)
        if self._own == 0:
            time.sleep(3 * BEAT)  # the others read that here
        self._end(why)

    def stop(self):
        """Watch no longer."""
        self._stopped.set()
        self._thread.join()
