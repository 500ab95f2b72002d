"""Volume service (Cinder v3)."""
