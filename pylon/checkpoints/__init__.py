"""What a checkpoint folder holds and means: weights, config.json, training.json; best and last."""
