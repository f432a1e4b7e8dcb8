"""Start, signal and read processes, and know which of them run."""
