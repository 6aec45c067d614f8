"""Checkpoints in, rows out: choose networks, run them on images. Scores are in pylon/scoring."""
