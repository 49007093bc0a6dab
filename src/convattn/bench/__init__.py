"""Benchmarks: what operators and networks cost on this machine, as validated records.

``convattn bench`` runs them. :mod:`convattn.bench.record` is the one schema of a record, and
:mod:`convattn.bench.requirements` says what has to be reached.
"""
