"""Attack the library and report every fault: ``python -m tests.attack [NAME ...] [--minutes M] [--seed S] [--json FILE]``."""

import argparse
import json
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

from tests.attack.harness import FAULTS, HELD, Budget, load_attacks


def main() -> int:
    """Run the attacks in turn, print a table of verdicts and every fault; return 1 if there is any."""
    attacks = load_attacks()
    parser = argparse.ArgumentParser(prog="python -m tests.attack", description=main.__doc__)
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"attacks to run (default: all): {', '.join(attacks)}")
    parser.add_argument("--minutes", type=float, default=10.0, help="total time, shared evenly (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="seed of all random choices (default: %(default)s)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the verdicts and faults to a file")
    options = parser.parse_args()
    if unknown := set(options.names) - set(attacks):
        parser.error(f"unknown attack {', '.join(sorted(unknown))}; choose from {', '.join(attacks)}")
    names = options.names or list(attacks)
    report = {}
    print(f"{'attack':28}{'cases':>8}{'held':>8}{'faults':>8}{'seconds':>9}", flush=True)
    for name in names:
        start = time.monotonic()
        with tempfile.TemporaryDirectory(prefix="attack-") as folder:
            budget = Budget(Path(folder), options.seed, 60 * options.minutes / len(names))
            outcomes = list(attacks[name](budget))
        seconds, counts = time.monotonic() - start, Counter(outcome.verdict for outcome in outcomes)
        faults = [outcome for outcome in outcomes if outcome.verdict != HELD]
        print(f"{name:28}{len(outcomes):8}{counts[HELD]:8}{len(faults):8}{seconds:9.0f}", flush=True)
        for fault in faults:
            print(f"  {fault.verdict}: {fault.case}: {fault.detail}", flush=True)
        report[name] = {
            "cases": len(outcomes),
            "verdicts": dict(counts),
            "seconds": seconds,
            "faults": [vars(fault) for fault in faults],
        }
    if options.json:
        options.json.write_text(json.dumps({"seed": options.seed, "attacks": report}, indent=2) + "\n")
    total: Counter[str] = Counter()
    for entry in report.values():
        total.update(entry["verdicts"])
    print(", ".join(f"{total[verdict]} {verdict}" for verdict in (HELD, *FAULTS)))
    return 1 if set(total) - {HELD} else 0


if __name__ == "__main__":
    sys.exit(main())
