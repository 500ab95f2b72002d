"""Servers that come from other hosts, go to them, or are resized on this one: docs/decisions/0009-moving.md."""
