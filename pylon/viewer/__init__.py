"""A page to look through heatmaps in any browser."""
