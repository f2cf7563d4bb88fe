"""Benchmarks, one file per question. Each prints one JSON document, and `python -m benchmarks` runs all of them."""
