"""Aggregators as values: streaming, mergeable sums of decoded updates in parent coordinates."""
