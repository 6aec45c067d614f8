"""What is shared of a checkpoint, with its scores, and the way to the Hugging Face hub."""
