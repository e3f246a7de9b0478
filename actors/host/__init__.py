"""The parts common to all actors' processes: wrappers for their Ray shells, and a worker's imports at its start."""
