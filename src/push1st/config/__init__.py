"""The configuration: its typed model, and the modules that make the model of files and environment variables."""
