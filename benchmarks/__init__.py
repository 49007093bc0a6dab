"""Benchmarks: what operators and networks cost on this machine, as validated records.

``python -m benchmarks`` runs them. :mod:`benchmarks.record` is the one schema of a record, and
:mod:`benchmarks.requirements` says what has to be reached.
"""
