"""The diagnosis of machines of other kinds, of engines that fail, and its output."""

import json
import subprocess
import sys

import pytest

from duonlp.doctor import Diagnosis, EngineReport, diagnose, diagnosis, engines, examine, extras
from tests.duonlp.cli.test_app import needs, run  # noqa: F401  (a fixture)

WORKING = EngineReport("jaxnlp", "jax", True, devices=("cpu:0 (cpu)",), kernels={"float32": "XLA"})
MISSING = EngineReport("tfnlp", "tf", False, 'tensorflow is not installed; pip install "duonlp[tf]"')


@pytest.fixture
def odd_machine(monkeypatch):
    """A system without /proc or control groups, whose cores and load are unknown."""
    monkeypatch.setattr(diagnosis, "_lines", lambda path: [])
    monkeypatch.setattr(diagnosis, "cpu_features", frozenset)
    monkeypatch.setattr(diagnosis, "physical_memory", lambda: None)
    plain = {
        "processor": "",
        "cores": None,
        "load": None,
        "system": "",
        "python": "3",
        "versions": {},
        "environment": {},
    }
    monkeypatch.setattr(diagnosis, "machine", lambda: plain)
    for name in (*diagnosis.THREADS, "TF_ENABLE_ONEDNN_OPTS", "XLA_FLAGS", "KERAS_BACKEND"):
        monkeypatch.delenv(name, raising=False)


def machine_with(monkeypatch, features=("avx512_vnni",), load=0.5, **environment):
    """Pretend to be a machine with four cores."""
    plain = {"processor": "x", "cores": 4, "load": load, "system": "", "python": "3", "versions": {}, "environment": {}}
    monkeypatch.setattr(diagnosis, "machine", lambda: plain)
    monkeypatch.setattr(diagnosis, "cpu_features", lambda: frozenset(features))
    for name, value in environment.items():
        monkeypatch.setenv(name, value)


def test_an_unknown_machine_is_described(odd_machine, run, monkeypatch):  # noqa: F811
    found = diagnose(lambda: [MISSING, WORKING])
    assert found.features is None and found.memory == {"total": None, "available": None, "limit": None}
    assert not found.warnings and json.loads(json.dumps(found.to_dict()))["engines"][0]["installed"] is False
    monkeypatch.setattr("duonlp.doctor.diagnose", lambda: found)
    status, out, _ = run("doctor")
    assert status == 0 and "unknown" in out and 'pip install "duonlp[tf]"' in out and "XLA" in out
    status, out, _ = run("doctor", "--json")
    assert status == 0 and json.loads(out) == json.loads(json.dumps(found.to_dict()))


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"TF_ENABLE_ONEDNN_OPTS": "0"}, "TF_ENABLE_ONEDNN_OPTS=0"),
        ({"OMP_NUM_THREADS": "1"}, "leaves 3 of 4 cores idle"),
        ({"KERAS_BACKEND": "jax"}, "KERAS_BACKEND=jax"),
        ({"XLA_FLAGS": "--xla_cpu_multi_thread_eigen=false"}, "XLA_FLAGS turns off threads"),
        ({"features": ("avx2",)}, "VNNI"),
        ({"load": 9.0}, "9 processes are running on 4 cores"),
    ],
)
def test_what_slows_models_down_is_a_warning(change, text, odd_machine, monkeypatch):
    machine_with(monkeypatch)
    assert not diagnose(lambda: [WORKING]).warnings
    machine_with(monkeypatch, **change)
    (warning,) = diagnose(lambda: [WORKING]).warnings
    assert text in warning


def test_limits_of_a_container(odd_machine, monkeypatch):
    machine_with(monkeypatch)
    files = {
        "/sys/fs/cgroup/cpu.max": ["150000 100000"], "/sys/fs/cgroup/memory.max": [str(4 << 30)],
        "/sys/fs/cgroup/memory.current": [str(3 << 30)], "/proc/meminfo": ["MemAvailable: 99999999 kB"],
    }  # fmt: skip
    monkeypatch.setattr(diagnosis, "_lines", lambda path: files.get(path, []))
    found = diagnose(lambda: [WORKING])
    assert found.cpu_quota == 1.5 and found.memory["available"] == 1 << 30
    assert [text for text in found.warnings if "1.5 cores" in text] and [t for t in found.warnings if "1.0 GB" in t]


def test_engines_and_their_settings_are_reported(odd_machine, monkeypatch):
    machine_with(monkeypatch)
    reports = [EngineReport("tfnlp", "tf", True, threads=1, onednn=False), MISSING]
    assert ["oneDNN" in text or "1 threads" in text for text in diagnose(lambda: reports).warnings] == [True, True]
    machine_with(monkeypatch, features=("avx2", "avx_vnni"))
    assert any("built without oneDNN" in text for text in diagnose(lambda: reports).warnings)
    machine_with(monkeypatch, features=("avx2",))  # where TensorFlow does not use it by default
    assert not any("oneDNN" in text for text in diagnose(lambda: reports).warnings)
    assert "no engine is installed" in diagnose(lambda: [MISSING]).warnings[-1]


@pytest.mark.parametrize(
    ("program", "text"),
    [
        ("import sys; print('no libxyz', file=sys.stderr); sys.exit(3)", "status 3: no libxyz"),
        ("import os; os.abort()", "status"),
        ("import time; time.sleep(60)", "more than 0.5 seconds"),
    ],
)
def test_an_engine_that_dies_is_part_of_the_answer(program, text, monkeypatch):
    def start(framework):
        return subprocess.Popen(
            [sys.executable, "-c", program], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )

    monkeypatch.setattr(engines, "_start", start)
    monkeypatch.setattr(engines, "installed", lambda framework: framework == "jax")
    tf, jax = examine(seconds=0.5 if "sleep" in program else 30)
    assert not tf.installed and "pip install" in tf.problem
    assert jax.installed and text in jax.problem


@needs("flax")
def test_the_probe_of_an_installed_engine():
    (report,) = examine(["jax"])
    assert not report.problem and report.devices and report.kernels


def test_extras_say_what_is_missing(monkeypatch):
    module = sys.modules["duonlp.doctor.extras"]
    lines = [
        'numpy>=1; extra == "a"', 'no-such-package>=2; extra == "a"', 'duonlp[a]; extra == "b"',
        'numpy>=1; extra == "c"', 'numpy>=9999; extra == "d"',
    ]  # fmt: skip
    monkeypatch.setattr(module, "requires", lambda name: lines)
    monkeypatch.setattr(module, "metadata", lambda name: type("M", (), {"get_all": lambda self, key: [*"abcd"]})())
    found = {extra.name: extra.missing for extra in extras()}
    assert found == {"a": ("no-such-package>=2",), "b": ("no-such-package>=2",), "c": (), "d": ("numpy>=9999",)}
    assert isinstance(diagnose(lambda: [WORKING]), Diagnosis)
