"""Work out what sd-scripts will do with a preset and a dataset."""
