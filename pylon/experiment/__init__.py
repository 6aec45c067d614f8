"""What a training leaves, and what an evaluation makes of it."""
