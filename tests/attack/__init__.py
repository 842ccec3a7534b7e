"""Attacks on the library: what `make attack` runs for minutes, the tests run for seconds.

An attack is a generator of outcomes, registered by name. A new file format or architecture joins by registering, see
``tests/attack/harness.py`` and docs/reliability.md.
"""
