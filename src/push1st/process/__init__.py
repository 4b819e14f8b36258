"""Operating-system processes: the supervisor, its workers and the engine."""
