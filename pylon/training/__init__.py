"""What train.py needs around its loop: options, first weights, checks, runs, tracking."""
