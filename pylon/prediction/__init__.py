"""Findings, heatmaps and boxes of any radiograph, in Python and as the files of predict.py."""
