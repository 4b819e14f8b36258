"""The configuration: its typed model, and the modules that read it from files and environment variables."""
