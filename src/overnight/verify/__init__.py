"""Proof that training is the same on any number of processes: small runs, each held against a plain float64 loop."""
