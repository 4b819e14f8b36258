"""The configuration: its typed model, and the modules that read the model from files and environment variables."""
