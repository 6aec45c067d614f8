"""Training runs, their checkpoints, and the evaluation of checkpoints."""
