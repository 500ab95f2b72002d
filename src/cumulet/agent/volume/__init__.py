"""Storage driver of a host: volumes, their snapshots, exports and backups."""
