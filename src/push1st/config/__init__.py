"""Configuration: the typed model, and how files and environment become it."""
