"""Benchmarks: what an operator costs on this machine, as validated records.

``python -m convattn.bench`` runs them. :mod:`convattn.bench.record` is the one schema of a record.
"""
