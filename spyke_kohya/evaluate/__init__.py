"""Measure it: the loss of every saved checkpoint on pictures that were not trained on."""
