"""Placement: what resource providers have, and which consumers use how much of it."""
