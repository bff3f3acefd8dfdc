"""Benchmarks, each a program of its own; ``benchmarks/README.md`` tells how they measure."""
