"""Command line, errors, files, device and processes; independent of the model."""
