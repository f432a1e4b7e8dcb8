"""What is wrong with it: one module a concern, each returning findings."""
