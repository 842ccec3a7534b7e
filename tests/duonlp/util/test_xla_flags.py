"""Flags are set where every installed XLA has them; the libraries here are stand-ins, apart from one test."""

import os
import subprocess
import sys

import pytest

from duonlp.util import xla_flags
from duonlp.util.xla_flags import HOST_DEVICES, add_xla_flags, has_xla_flag


@pytest.fixture(autouse=True)
def nothing_remembered():
    yield
    xla_flags.xla_libraries.cache_clear()


@pytest.fixture
def libraries(tmp_path, monkeypatch):
    """Makes packages with libraries that define flags: {"jaxlib": {"libjax.so": ["xla_a"]}}."""

    def make(**packages):
        xla_flags.xla_libraries.cache_clear()
        monkeypatch.setattr(xla_flags, "PACKAGES", tuple(packages))
        monkeypatch.setattr(xla_flags, "PLUGINS", "no_plugins")
        monkeypatch.syspath_prepend(tmp_path)
        for package, files in packages.items():
            for file, names in files.items():
                path = tmp_path / package / file
                path.parent.mkdir(parents=True, exist_ok=True)
                strings = b"".join(b"\0" + name.encode() + b"\0" for name in names)
                path.write_bytes(b"\x7fELF" + bytes(2**20) + strings + b"\nxla_removedR\x12")
            (tmp_path / package / "__init__.py").write_text("raise RuntimeError('this was imported')")

    return make


def test_a_flag_is_set_where_every_xla_has_it(libraries):
    libraries(
        here={"libjax_common.so": [HOST_DEVICES, "xla_both", "xla_here"], "other.so": []},
        there={"libtensorflow_cc.so.2": [HOST_DEVICES, "xla_both", "xla_there"]},
    )
    environment = {"XLA_FLAGS": "--xla_dump_to=/tmp --xla_given=1"}
    flags = {"xla_both": "true", "xla_here": 2, "xla_there": 3, "xla_removed": 4, "xla_given": 5, HOST_DEVICES: 8}
    assert add_xla_flags(flags, environment) == ("xla_here", "xla_there", "xla_removed")
    assert environment == {"XLA_FLAGS": f"--xla_dump_to=/tmp --xla_given=1 --xla_both=true --{HOST_DEVICES}=8"}
    assert add_xla_flags({HOST_DEVICES: 2}, environment) == () and environment["XLA_FLAGS"].endswith("=8")
    assert add_xla_flags({HOST_DEVICES: 2}, environment, override=True) == ()
    assert environment["XLA_FLAGS"].endswith(f"--xla_both=true --{HOST_DEVICES}=2")


def test_an_xla_that_cannot_be_looked_into_has_no_flags(libraries):
    libraries(here={"libjax_common.so": [HOST_DEVICES]}, there={"elsewhere/lib.so": [HOST_DEVICES]})
    environment = {}
    assert add_xla_flags({HOST_DEVICES: 8}, environment) == (HOST_DEVICES,) and environment == {}
    libraries()
    assert not has_xla_flag(HOST_DEVICES)


def test_the_installed_xla_has_the_flags_it_lists_and_ends_on_others():
    """Searching the library without importing it agrees with XLA, which aborts the process on an unknown flag."""
    pytest.importorskip("jax")
    names = [HOST_DEVICES, "xla_backend_optimization_level", "xla_cpu_use_fusion_emitters", "xla_cpu_no_such_flag"]
    found = {name: xla_flags._defines(xla_flags.xla_libraries()[0][0], name) for name in names}
    assert found[HOST_DEVICES] and not found["xla_cpu_no_such_flag"]
    for name, defined in found.items():
        flags = f"--{name}={'false' if 'use' in name else 1}"
        done = subprocess.run(
            [sys.executable, "-c", "import jax; jax.devices()"], env=os.environ | {"XLA_FLAGS": flags},
            capture_output=True, text=True, check=False,
        )  # fmt: skip
        assert (done.returncode == 0) == defined, done.stderr
        assert defined or name in done.stderr


def test_an_overridden_flag_that_is_unsupported_is_removed():
    environment = {"XLA_FLAGS": "--xla_nonexistent=3"}
    assert add_xla_flags({"xla_nonexistent": 4}, environment, override=True) == ("xla_nonexistent",)
    assert environment["XLA_FLAGS"] == ""
