"""Measurements side by side with peers. ``python -m benchmarks`` lists them; ``make bench`` runs them."""
