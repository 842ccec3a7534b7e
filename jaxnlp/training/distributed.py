"""Many hosts, one run: starting together, waiting for each other with a limit, and noticing that the machines go away."""

import os
import signal
import threading

import jax
from orbax.checkpoint import multihost

from duonlp.errors import InputError

CLUSTER_VARIABLES = (
    "SLURM_JOB_ID", "TPU_WORKER_HOSTNAMES", "TPU_WORKER_ID", "MEGASCALE_COORDINATOR_ADDRESS", "OMPI_COMM_WORLD_SIZE",
)  # fmt: skip
"""Set where JAX finds the other processes by itself."""


def start(
    coordinator: str | None = None, processes: int | None = None, process: int | None = None, timeout: int = 300
) -> None:
    """Connects this process with the others of the run; to be called before JAX is used for anything.

    On Cloud TPU and under SLURM or Open MPI nothing need be said: JAX finds the others. Elsewhere every process is told
    where process 0 listens. With neither, the run has this one process.

    Args:
        coordinator: host:port of process 0, the same for all.
        processes: how many there are.
        process: which of them this is, from 0.
        timeout: seconds to wait for all to come.

    Raises:
        InputError: only some of the three are given, or `process` is none of them.
    """
    given = {"coordinator": coordinator, "processes": processes, "process": process}
    missing = [name for name, value in given.items() if value is None]
    if len(missing) == len(given):
        if any(os.environ.get(name) for name in CLUSTER_VARIABLES) and not jax.distributed.is_initialized():
            jax.distributed.initialize(initialization_timeout=timeout)
        return
    if missing:
        raise InputError(
            f"{', '.join(missing)} missing: give coordinator (host:port), processes and process together, or none of them"
        )
    if not 0 <= process < processes:
        raise InputError(f"process is {process}; with {processes} processes it must be from 0 to {processes - 1}")
    jax.distributed.initialize(coordinator, processes, process, initialization_timeout=timeout)


def is_main() -> bool:
    """Whether this is process 0: the one that logs."""
    return jax.process_index() == 0


def barrier(name: str, timeout: int = 300) -> None:
    """Waits until every process is here; raises after `timeout` seconds rather than hang with the others gone."""
    if jax.process_count() > 1:
        multihost.sync_global_processes(name, timeout=timeout)


class Preemption:
    """While it is entered, SIGTERM asks the run to save and leave, instead of ending the process.

    With several processes it is JAX's own service that is asked: it hears a signal on any host, and all of them agree
    on the step to stop after.
    """

    def __init__(self):
        self._asked, self._before = threading.Event(), None

    def __enter__(self) -> "Preemption":
        if jax.process_count() == 1 and threading.current_thread() is threading.main_thread():
            self._before = signal.signal(signal.SIGTERM, lambda *_: self._asked.set())
        return self

    def __exit__(self, *_) -> None:
        if self._before is not None:
            signal.signal(signal.SIGTERM, self._before)

    def asked(self, step: int) -> bool:
        """Whether to stop after this step; the same answer in all processes."""
        return multihost.reached_preemption(step) if jax.process_count() > 1 else self._asked.is_set()
