"""Read the settings of other front ends."""
