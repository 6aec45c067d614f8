"""Machine and user: command line, errors, files, device, processes. Knows no network."""
