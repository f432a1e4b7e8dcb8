"""Show it: the same results as text and pictures."""
