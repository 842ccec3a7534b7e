"""Multi-host runs: connecting the processes, barriers with a timeout, and preemption."""

import json
import os
import signal
import threading
from collections.abc import Callable
from typing import Any, Self

import jax
import numpy as np
from jax.experimental import multihost_utils
from orbax.checkpoint import multihost

from duonlp.errors import DuonlpError, InputError

CLUSTER_VARIABLES = (
    "SLURM_JOB_ID", "TPU_WORKER_HOSTNAMES", "TPU_WORKER_ID", "MEGASCALE_COORDINATOR_ADDRESS", "OMPI_COMM_WORLD_SIZE",
)  # fmt: skip
"""Environment variables of clusters on which JAX finds the other processes by itself."""


def start(
    coordinator: str | None = None, processes: int | None = None, process: int | None = None, timeout: int = 300
) -> None:
    """Connect this process with the others of the run; call it before any other use of JAX.

    On Cloud TPU and under SLURM or Open MPI no arguments are needed: JAX finds the other processes. Elsewhere every process
    needs the address of process 0. Without arguments and without a cluster, the run has a single process.

    Args:
        coordinator: host:port of process 0, the same in all processes.
        processes: Number of processes.
        process: Index of this process, from 0.
        timeout: Seconds to wait until all processes are connected.

    Raises:
        InputError: Only some of the three arguments are given, or `process` is out of range.
    """
    if coordinator is None and processes is None and process is None:
        if any(os.environ.get(name) for name in CLUSTER_VARIABLES) and not jax.distributed.is_initialized():
            jax.distributed.initialize(initialization_timeout=timeout)
        return
    if coordinator is None or processes is None or process is None:
        arguments = {"coordinator": coordinator, "processes": processes, "process": process}
        missing = ", ".join(name for name, value in arguments.items() if value is None)
        raise InputError(f"{missing} missing; pass coordinator (host:port), processes and process together, or none")
    if not 0 <= process < processes:
        raise InputError(f"process is {process}; with {processes} processes it must be from 0 to {processes - 1}")
    jax.distributed.initialize(coordinator, processes, process, initialization_timeout=timeout)


def is_main() -> bool:
    """Return whether this is process 0, the one that logs."""
    return jax.process_index() == 0


def barrier(name: str, timeout: int = 300) -> None:
    """Wait until every process gets here; raise after `timeout` seconds so that a lost process cannot hang the run."""
    if jax.process_count() > 1:
        multihost.sync_global_processes(name, timeout=timeout)


def run_on_main(function: Callable[[], Any]) -> Any:
    """Call a function in process 0 alone and return its JSON-compatible result in every process.

    Raises:
        DuonlpError: In the other processes, if the function raised a DuonlpError; process 0 raises that error itself.
        RuntimeError: In the other processes, if it raised any other error.
    """
    if jax.process_count() == 1:
        return function()
    outcome, error = {}, None
    if is_main():
        try:
            outcome = {"result": function()}
        except Exception as raised:  # the other processes must not wait for a result
            outcome = {"error": f"{type(raised).__name__}: {raised}", "expected": isinstance(raised, DuonlpError)}
            error = raised
    data = np.frombuffer(json.dumps(outcome).encode(), np.uint8)
    size = int(multihost_utils.broadcast_one_to_all(np.int32(len(data))))
    data = multihost_utils.broadcast_one_to_all(data if is_main() else np.zeros(size, np.uint8))
    if error is not None:
        raise error
    outcome = json.loads(np.asarray(data, np.uint8).tobytes())
    if "error" in outcome:
        # Processes that caught different kinds of errors could wait for each other, as in a checkpoint that one of them saves.
        raise (DuonlpError if outcome["expected"] else RuntimeError)(f"process 0 failed: {outcome['error']}")
    return outcome["result"]


class Preemption:
    """Context manager in which SIGTERM requests the run to save and stop, instead of killing the process.

    With several processes, JAX's preemption service receives the signal on any host and makes all processes agree on the
    step to stop after.
    """

    def __init__(self) -> None:
        self._requested = threading.Event()
        self._previous_handler: Any = None

    def __enter__(self) -> Self:
        if jax.process_count() == 1 and threading.current_thread() is threading.main_thread():
            self._previous_handler = signal.signal(signal.SIGTERM, lambda *_: self._requested.set())
        return self

    def __exit__(self, *_: object) -> None:
        if self._previous_handler is not None:
            signal.signal(signal.SIGTERM, self._previous_handler)

    def requested(self, step: int) -> bool:
        """Return whether to stop after this step; all processes get the same answer."""
        return multihost.reached_preemption(step) if jax.process_count() > 1 else self._requested.is_set()
