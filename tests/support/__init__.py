"""Helpers of the tests: servers of their own, the cloud in a process, clients."""
