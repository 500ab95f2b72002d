"""Hosts that join the cloud, and what an operator does with a host as a whole."""
