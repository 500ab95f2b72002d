"""Sagas of the compute service: each file begins with its table of steps."""
