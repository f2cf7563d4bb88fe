"""One file per question; each prints one JSON document. `python -m benchmarks` runs them all."""
