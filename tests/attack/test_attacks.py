"""Run every attack for a few cases: what held once must go on holding."""

import pytest

from tests.attack.harness import HELD, Budget, load_attacks


@pytest.mark.parametrize("name", load_attacks())
def test_attack(name: str, tmp_path):
    faults = [outcome for outcome in load_attacks()[name](Budget(tmp_path, cases=20)) if outcome.verdict != HELD]
    assert not faults, "\n".join(f"{fault.verdict}: {fault.case}: {fault.detail}" for fault in faults)
