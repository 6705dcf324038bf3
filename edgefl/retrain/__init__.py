"""Retraining: a trained torch model made small on disk with as little loss of accuracy as possible, with or without labels."""
