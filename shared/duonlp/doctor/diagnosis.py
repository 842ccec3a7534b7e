"""Collect what decides the speed of models on this machine, and what is wrong with it."""

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from duonlp.doctor.engines import EngineReport, examine
from duonlp.doctor.extras import Extra, extras
from duonlp.util.machine_info import cpu_features, machine, physical_memory

FEATURES = (
    "avx2", "fma", "f16c", "avx512f", "avx512_vnni", "avx_vnni", "avx512_bf16", "avx512_fp16", "amx_tile", "amx_int8",
    "amx_bf16", "asimd", "asimddp", "i8mm", "bf16", "sve",
)  # fmt: skip
"""Instruction sets that matter for the speed of models, by their Linux names."""

INTEGER_PRODUCTS = frozenset({"avx512_vnni", "avx_vnni", "amx_int8", "asimddp", "i8mm"})
"""Instruction sets that multiply and add 8-bit integers."""

ONEDNN_DEFAULT = frozenset({"avx512_vnni", "avx_vnni", "avx512_bf16", "amx_tile", "amx_int8", "amx_bf16"})
"""Instruction sets of which one must be present for TensorFlow to use oneDNN by default."""

THREADS = "OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "TF_NUM_INTRAOP_THREADS"
"""Environment variables that limit the threads of an operation."""

SMALL_MEMORY = 2 << 30
"""Bytes of free memory below which a base model may not fit."""


@dataclass(frozen=True)
class Diagnosis:
    """What models will run on.

    Attributes:
        machine: As :func:`duonlp.util.machine` describes it: processor, cores, load, versions, environment.
        features: Those of FEATURES that the processor has; None if the system does not tell.
        memory: "total" and "available" bytes, and "limit" of the container; None for what is unknown.
        cpu_quota: Cores that the container may use on average; None without a limit.
        engines: What each engine will use.
        extras: Extras of the distribution, with what they lack.
        warnings: What makes models slow or wrong here, and what to do about it.
    """

    machine: dict[str, Any]
    features: tuple[str, ...] | None
    memory: dict[str, int | None]
    cpu_quota: float | None
    engines: tuple[EngineReport, ...]
    extras: tuple[Extra, ...]
    warnings: tuple[str, ...]

    def to_dict(self) -> dict[str, Any]:
        """Return the diagnosis as plain values for JSON."""
        return asdict(self) | {"extras": [asdict(extra) | {"command": extra.command} for extra in self.extras]}


def diagnose(engines: Callable[[], Sequence[EngineReport]] = examine) -> Diagnosis:
    """Describe the machine, the engines and what to change.

    Args:
        engines: Returns the reports on the engines.
    """
    description, reports = machine(), tuple(engines())
    instructions = cpu_features()
    features = tuple(name for name in FEATURES if name in instructions) if instructions else None
    memory, quota = _memory(), _cpu_quota()
    warnings = _warnings(description, features, memory, quota, reports)
    return Diagnosis(description, features, memory, quota, reports, tuple(extras()), tuple(warnings))


def _warnings(
    description: Mapping[str, Any], features: tuple[str, ...] | None, memory: Mapping[str, int | None], quota: float | None,
    engines: Sequence[EngineReport],
) -> list[str]:  # fmt: skip
    cores, load, environment = description["cores"], description["load"], os.environ
    warnings = _environment_warnings(environment, cores)
    if features is not None and not INTEGER_PRODUCTS & set(features):
        warnings.append(
            "the processor has no instructions for products of 8-bit integers (VNNI, AMX): int8 models are smaller, but hardly "
            "faster"
        )
    if quota is not None and cores and quota < cores:
        warnings.append(
            f"the container may use {quota:g} cores on average, but frameworks start {cores} threads that take turns; "
            "raise its limit, or bind it to fewer cores (taskset, --cpuset-cpus)"
        )
    if load is not None and cores and load > cores:
        warnings.append(f"{load:g} processes are running on {cores} cores: measurements will be too slow")
    free = memory["available"]
    if free is not None and free < SMALL_MEMORY:
        warnings.append(f"only {free / 2**30:.1f} GB of memory are free")
    for engine in engines:
        if engine.installed and engine.problem:
            warnings.append(f"{engine.package} does not work: {engine.problem}")
        is_expected = features is not None and ONEDNN_DEFAULT & set(features)
        if engine.onednn is False and is_expected and environment.get("TF_ENABLE_ONEDNN_OPTS") != "0":
            warnings.append(
                "TensorFlow was built without oneDNN, so tfnlp is slower on this processor; install the official wheel, "
                "pip install tensorflow"
            )
        if engine.threads is not None and cores and engine.threads < cores:
            warnings.append(f"{engine.package} uses {engine.threads} threads on {cores} cores")
    if os.path.exists("/proc/driver/nvidia/version"):
        for engine in engines:
            if engine.devices and all("cpu" in device.lower() for device in engine.devices):
                warnings.append(f"{engine.package} does not see the NVIDIA GPU; install its CUDA build")
    if all(not engine.installed for engine in engines):
        warnings.append("no engine is installed: " + " or ".join(engine.problem.split("; ")[-1] for engine in engines))
    return warnings


def _environment_warnings(environment: Mapping[str, str], cores: int | None) -> list[str]:
    warnings = []
    if environment.get("TF_ENABLE_ONEDNN_OPTS") == "0":
        warnings.append("TF_ENABLE_ONEDNN_OPTS=0 turns off TensorFlow's fast kernels; unset it")
    for name in THREADS:
        value = environment.get(name, "")
        if value.isdecimal() and cores and 0 < int(value) < cores:
            warnings.append(f"{name}={value} leaves {cores - int(value)} of {cores} cores idle; unset it")
    if environment.get("KERAS_BACKEND", "tensorflow") != "tensorflow":
        warnings.append(f"KERAS_BACKEND={environment['KERAS_BACKEND']}: tfnlp needs tensorflow; unset it")
    if environment.get("JAX_DISABLE_JIT", "").lower() in ("1", "true"):
        warnings.append("JAX_DISABLE_JIT turns off compilation, so jaxnlp is many times slower; unset it")
    if environment.get("JAX_ENABLE_X64", "").lower() in ("1", "true"):
        warnings.append("JAX_ENABLE_X64 makes JAX compute in 64 bits where no dtype is given; unset it")
    flags = environment.get("XLA_FLAGS", "")
    if "xla_cpu_multi_thread_eigen=false" in flags:
        warnings.append("XLA_FLAGS turns off threads (xla_cpu_multi_thread_eigen=false); remove the flag")
    if "xla_force_host_platform_device_count" in flags:
        warnings.append("XLA_FLAGS splits the processor into several devices (xla_force_host_platform_device_count)")
    return warnings


def _memory() -> dict[str, int | None]:
    values: dict[str, int | None] = {"total": physical_memory(), "available": None, "limit": None}
    for line in _lines("/proc/meminfo"):
        if line.startswith("MemAvailable:"):
            values["available"] = int(line.split()[1]) * 1024
    limit = "".join(_lines("/sys/fs/cgroup/memory.max")[:1]).strip()
    if limit.isdecimal():
        values["limit"] = int(limit)
        used = "".join(_lines("/sys/fs/cgroup/memory.current")[:1]).strip()
        if used.isdecimal():
            left = max(0, int(limit) - int(used))
            values["available"] = left if values["available"] is None else min(left, values["available"])
    return values


def _cpu_quota() -> float | None:
    """Return the cores that Linux' control group (version 2, cpu.max: microseconds per period) grants."""
    parts = "".join(_lines("/sys/fs/cgroup/cpu.max")[:1]).split()
    if len(parts) == 2 and parts[0].isdecimal() and parts[1].isdecimal() and int(parts[1]):
        return round(int(parts[0]) / int(parts[1]), 2)
    return None


def _lines(path: str) -> list[str]:
    try:
        return Path(path).read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:  # another system
        return []
