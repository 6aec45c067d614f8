"""From a folder of radiographs to two plain tables, and from these to batches."""
