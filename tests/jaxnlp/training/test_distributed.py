"""Test what several processes do together, in one process that plays each of them."""

import jax
import numpy as np
import pytest

from duonlp.errors import DuonlpError, InputError
from jaxnlp.training import distributed


@pytest.mark.parametrize(("error", "expected"), [(InputError, DuonlpError), (KeyError, RuntimeError)])
def test_all_processes_raise_the_same_kind_of_error(monkeypatch, error, expected):
    sent, received = [], iter(())

    def broadcast(value):
        if distributed.is_main():
            sent.append(np.asarray(value))
            return value
        return next(received)

    def fail():
        raise error("x")

    monkeypatch.setattr(jax, "process_count", lambda: 2)
    monkeypatch.setattr(distributed.multihost_utils, "broadcast_one_to_all", broadcast)
    with pytest.raises(error):
        distributed.run_on_main(fail)
    monkeypatch.setattr(distributed, "is_main", lambda: False)
    received = iter(sent)
    with pytest.raises(expected, match=f"process 0 failed: {error.__name__}"):
        distributed.run_on_main(fail)
