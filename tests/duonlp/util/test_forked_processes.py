"""Forked processes, in which frameworks cannot run."""

import os
import subprocess
import sys

import pytest

CODE = """
import os, sys
from duonlp.util.frameworks import check_process
if sys.argv[1] == "used":
    check_process()
child = os.fork()
if not child:
    try:
        check_process()
    except ValueError as error:
        print(error, flush=True)
        os._exit(3)
    os._exit(0)
print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
check_process()
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="the system has no fork")
@pytest.mark.parametrize(("parent", "status"), [("used", "3"), ("unused", "0")])
def test_a_child_refuses_if_its_parent_had_a_model(parent, status):
    result = subprocess.run([sys.executable, "-c", CODE, parent], capture_output=True, text=True, check=True)
    *message, code = result.stdout.splitlines()
    assert code == status
    assert ("spawn" in message[0] and "load the model in each" in message[0]) if parent == "used" else not message
