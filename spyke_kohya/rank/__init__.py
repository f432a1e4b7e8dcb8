"""Judge it: losses, windows, ranking."""
