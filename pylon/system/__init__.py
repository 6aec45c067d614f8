"""Machine and user: command line, errors, files, device, processes. Knows nothing of PYLON."""
