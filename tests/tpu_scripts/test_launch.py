"""launch.sh with a stand-in for gcloud, in which every worker is a local home folder where its commands run."""

import os
import shlex
import shutil
import subprocess
import textwrap
import time
from pathlib import Path

import pytest

SCRIPT = Path(__file__).resolve().parents[2] / "tpu_scripts" / "launch.sh"
BASH = shutil.which("bash")
pytestmark = pytest.mark.skipif(BASH is None, reason="bash is not installed")

GCLOUD = r"""#!/usr/bin/env bash
# Record the arguments; a state is the first line of a file, which is removed once read unless it is the last.
set -u
{ printf '%s\x1f' "$@"; printf '\x1e'; } >> "$FAKE/calls"
state() {
  [ -f "$FAKE/$1" ] || exit 1
  head -n 1 "$FAKE/$1"
  if [ "$(wc -l < "$FAKE/$1")" -gt 1 ]; then sed -i 1d "$FAKE/$1"; fi
}
kind=$3 verb=$4 name=$5; worker=all command="" files=() format=""
shift 4
while (($#)); do
  case $1 in
    --worker) worker=$2; shift 2 ;;
    --command) command=$2; shift 2 ;;
    --format) format=$2; shift 2 ;;
    --zone|--project|--accelerator-type|--version|--runtime-version|--node-id) shift 2 ;;
    --*) shift ;;
    *) files+=("$1"); shift ;;
  esac
done
workers() { if [ "$worker" = all ]; then echo 0 1; else echo "$worker"; fi; }
case "$kind $verb" in
  "tpu-vm describe") case $format in *Endpoints*) [ -f "$FAKE/vm" ] && echo "10.0.0.1;10.0.0.2" ;; *) state vm ;; esac ;;
  "queued-resources describe") state queue ;;
  "tpu-vm create") echo READY > "$FAKE/vm" ;;
  "queued-resources create")
    printf 'state=WAITING_FOR_RESOURCES\nstate=ACTIVE\n' > "$FAKE/queue"
    [ ! -f "$FAKE/vm.later" ] || mv "$FAKE/vm.later" "$FAKE/vm" ;;
  "tpu-vm delete") rm "$FAKE/vm" ;;
  "queued-resources delete") rm -f "$FAKE/queue" "$FAKE/vm" ;;
  "tpu-vm ssh")
    for w in $(workers); do
      mkdir -p "$FAKE/home$w"
      (cd "$FAKE/home$w" && HOME=$PWD PATH="$FAKE/remote-bin:$PATH" bash -c "$command") || exit
    done ;;
  "tpu-vm scp")
    last=${files[-1]}; unset 'files[-1]'
    for w in $(workers); do
      for file in "${files[@]}"; do
        from=$file to=$last
        case $from in *:*) from="$FAKE/home$w/${from#*:}" ;; esac
        case $to in *:*) to="$FAKE/home$w/${to#*:}" ;; esac
        cp -r "$from" "$to" || exit
      done
    done ;;
  *) echo "what is $kind $verb?" >&2; exit 64 ;;
esac
"""

UV = r"""#!/bin/sh
# "uv venv" links this machine's python; "uv pip install" only records its arguments.
if [ "$1" = venv ]; then mkdir -p venv/bin && ln -sf "$(command -v python3)" venv/bin/python; fi
echo "uv $*" >> "$HOME/uv"
"""


@pytest.fixture
def cloud(tmp_path):
    """Return a function that runs launch.sh; its `.folder` has the stand-in's records and the workers' homes."""
    (tmp_path / "bin").mkdir()
    (tmp_path / "remote-bin").mkdir()
    executable(tmp_path / "bin" / "gcloud", GCLOUD)
    executable(tmp_path / "remote-bin" / "uv", UV)
    repo = tmp_path / "package with a space"
    (repo / "tpu_scripts").mkdir(parents=True)
    (repo / "pyproject.toml").write_text("")
    (repo / "tpu_scripts" / "show.py").write_text("import sys; print('arguments', sys.argv[1:])")

    def launch(*arguments, input_=None, **more):
        options = ["--name", "my-run", "--zone", "us-west4-a", "--poll", "0"]
        environment = os.environ | {"PATH": f"{tmp_path / 'bin'}:{os.environ['PATH']}", "FAKE": str(tmp_path)} | more
        return subprocess.run(
            [BASH, str(SCRIPT), *options, *arguments], capture_output=True, text=True, env=environment, cwd=tmp_path,
            timeout=60, check=False,
        )  # fmt: skip

    launch.folder, launch.repo = tmp_path, repo
    return launch


def executable(path: Path, text: str):
    path.write_text(text)
    path.chmod(0o755)


def calls(cloud) -> list[list[str]]:
    record = cloud.folder / "calls"
    return [call.split("\x1f")[:-1] for call in record.read_text().split("\x1e")[:-1]] if record.exists() else []


def verbs(cloud) -> list[str]:
    return [" ".join(call[2:4]) for call in calls(cloud)]


def start(cloud, *command, more=()):
    return cloud("--accelerator-type", "v5litepod-16", "--repo", str(cloud.repo), *more, "--", *command)


def wait_for(path: Path):
    for _ in range(200):
        if path.exists() and path.read_text():
            return path.read_text()
        time.sleep(0.05)
    raise AssertionError(f"{path} did not appear")


def test_a_command_is_started_on_all_workers_with_its_arguments_intact(cloud):
    odd = ["a b", "it's", "$HOME", "*", 'say "x"', "new\nline", "--name", ""]
    done = start(cloud, "python3", "tpu_scripts/show.py", *odd)
    assert done.returncode == 0, done.stderr
    for worker in (0, 1):
        assert (cloud.folder / f"tpu_logs/my-run/worker-{worker}.log").read_text() == f"arguments {odd}\n"
        assert (
            "pip install --quiet --python venv/bin/python -e ./source[jax,pretrain] jax[tpu]"
            in (cloud.folder / f"home{worker}/uv").read_text()
        )
    created = calls(cloud)[1]
    assert created[:5] == ["compute", "tpus", "tpu-vm", "create", "my-run"]
    assert "--version v2-alpha-tpuv5-lite" in " ".join(created) and "--spot" not in created
    assert "arguments" in done.stdout  # the first worker's output was followed
    assert not list(cloud.folder.glob("tpu_logs/my-run/*.part"))


def test_a_dry_run_prints_every_command_and_calls_nothing(cloud):
    done = start(cloud, "echo", "it's me", more=("--dry-run", "--queued", "--spot", "--project", "my project"))
    assert done.returncode == 0, done.stderr
    assert calls(cloud) == [] and not (cloud.folder / "tpu_logs").exists()
    printed = [shlex.split(line[2:], comments=True) for line in done.stderr.splitlines() if line.startswith("+ ")]
    gcloud = [words for words in printed if words and words[0] == "gcloud"]
    assert [" ".join(words[3:5]) for words in gcloud] == [
        "queued-resources create", "queued-resources describe", "tpu-vm describe", "tpu-vm ssh", "tpu-vm scp", "tpu-vm ssh",
        "tpu-vm ssh", "tpu-vm ssh", "tpu-vm scp",
    ]  # fmt: skip
    assert all(words[words.index("--project") + 1] == "my project" for words in gcloud)
    assert "--spot" in gcloud[0] and "--runtime-version" in gcloud[0]
    assert "    echo it\\'s\\ me &" in done.stderr


def test_a_dry_run_needs_no_gcloud(cloud):
    only = cloud.folder / "only"
    only.mkdir()
    for tool in ("bash", "basename", "dirname", "cat", "sed", "env", "tr", "grep"):
        os.symlink(shutil.which(tool), only / tool)
    assert start(cloud, "true", more=("--dry-run",)).returncode == 0
    missing = cloud("--accelerator-type", "v4-8", "--repo", str(cloud.repo), "--", "true", PATH=str(only))
    assert missing.returncode == 1 and "gcloud is not installed" in missing.stderr
    assert cloud("--accelerator-type", "v4-8", "--dry-run", "--", "true", PATH=str(only)).returncode == 0


def test_an_existing_vm_is_reused_and_its_work_kept(cloud):
    assert start(cloud, "bash", "-c", "echo precious > checkpoint", more=("--detach",)).returncode == 0
    wait_for(cloud.folder / "home1/duonlp-my-run/run.status")
    done = start(cloud, "cat", "checkpoint")
    assert done.returncode == 0 and "Reusing the existing TPU VM my-run" in done.stderr and "precious" in done.stdout
    assert verbs(cloud).count("tpu-vm create") == 1
    old = list((cloud.folder / "home0/duonlp-my-run").glob("run.2*.log"))
    assert len(old) == 1  # the first command's output


def test_a_queued_resource_is_waited_for(cloud):
    (cloud.folder / "vm.later").write_text("CREATING\nCREATING\nREADY\n")
    done = start(cloud, "echo", "hello", more=("--queued",))
    assert done.returncode == 0, done.stderr
    assert "my-run: CREATING" in done.stderr and verbs(cloud).count("queued-resources create") == 1
    assert cloud("--delete").returncode == 0
    assert verbs(cloud)[-1] == "queued-resources delete" and "--force" in calls(cloud)[-1]


@pytest.mark.parametrize(
    "states, message",
    [({"vm": "PREEMPTED\n"}, "is PREEMPTED"), ({"queue": "FAILED\n"}, "queued resource my-run is FAILED"),
     ({"queue": "WAITING_FOR_RESOURCES\n"}, "was not ready after 0 s (WAITING_FOR_RESOURCES)")],
)  # fmt: skip
def test_a_slice_that_cannot_become_ready_fails(cloud, states, message):
    for name, state in states.items():
        (cloud.folder / name).write_text(state)
    done = start(cloud, "true", more=("--queued", "--wait", "0"))
    assert done.returncode == 1 and message in done.stderr
    assert "tpu-vm ssh" not in verbs(cloud)


def test_a_running_command_is_reported_and_stopped_and_not_started_twice(cloud):
    waits = textwrap.dedent("""\
        import signal, sys, time
        signal.signal(signal.SIGTERM, lambda *_: (print("saved", flush=True), sys.exit(0)))
        print("working", flush=True)
        time.sleep(60)
        """)
    assert start(cloud, "python3", "-c", waits, more=("--detach",)).returncode == 0
    home = cloud.folder / "home1/duonlp-my-run"
    wait_for(home / "run.log")
    try:
        assert "running\nworking" in cloud("--status").stdout
        again = start(cloud, "true", more=("--detach",))
        assert again.returncode != 0 and "still running" in again.stderr
    finally:
        stopped = cloud("--stop")
    assert stopped.stdout.splitlines() == ["sent SIGTERM"] * 2
    assert wait_for(home / "run.status") == "0\n"  # its own status, not that of the signal
    assert "saved" in (home / "run.log").read_text()
    assert "ended with status 0" in cloud("--status").stdout


def test_status_of_a_failed_command_and_missing_logs(cloud):
    assert cloud("--status").returncode == 1
    assert start(cloud, "bash", "-c", "exit 3", more=("--detach",)).returncode == 0
    wait_for(cloud.folder / "home1/duonlp-my-run/run.status")
    assert "ended with status 3" in cloud("--status").stdout
    (cloud.folder / "home1/duonlp-my-run/run.log").unlink()
    done = cloud("--logs", "--log-folder", "logs here")
    assert done.returncode == 1 and "no log from worker 1" in done.stderr
    assert (cloud.folder / "logs here/worker-0.log").exists()
    assert cloud("--delete").returncode == 0 and verbs(cloud)[-1] == "tpu-vm delete"
    assert cloud("--delete").returncode == 1


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["--", "true"], "--accelerator-type is missing"),
        (["--accelerator-type", "v4-8"], "no command to run"),
        (["--accelerator-type", "v9-8", "--", "true"], "no default --version for 'v9-8'"),
        (["--accelerator-type"], "--accelerator-type needs a value"),
        (["--name", "My Run", "--status"], "--name is 'My Run'"),
        (["--wait", "soon", "--status"], "--wait is 'soon'"),
        (["--status", "--logs"], "cannot be combined"),
        (["--status", "--", "true"], "--status takes no command"),
        (["--colour"], "unknown option --colour"),
        (["--accelerator-type", "v4-8", "--repo", "/nowhere", "--", "true"], "--repo is '/nowhere'"),
        (["--extras", "a;b", "--status"], "--extras is 'a;b'"),
    ],
)
def test_invalid_arguments_are_named(cloud, arguments, message):
    done = cloud(*arguments)
    assert done.returncode == 2 and message in done.stderr and calls(cloud) == []


def test_a_git_url_is_cloned_on_the_workers(cloud):
    done = cloud("--accelerator-type", "v4-8", "--repo", "https://example.org/it's.git", "--dry-run", "--", "true")
    assert (
        done.returncode == 0 and "git clone --quiet --depth 1 -- https://example.org/it\\'s.git source" in done.stderr
    )
    assert "source.tar.gz" not in done.stderr


def test_help_and_shellcheck():
    help_ = subprocess.run([BASH, str(SCRIPT), "--help"], capture_output=True, text=True, check=True)
    assert "--dry-run" in help_.stdout
    if shutil.which("shellcheck"):
        subprocess.run(["shellcheck", str(SCRIPT)], check=True)
