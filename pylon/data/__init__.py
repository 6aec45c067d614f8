"""Read a folder of radiographs into two plain tables, and load batches from them."""
