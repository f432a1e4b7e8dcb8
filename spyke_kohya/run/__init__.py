"""Make it happen: the run directory, the process, the training."""
