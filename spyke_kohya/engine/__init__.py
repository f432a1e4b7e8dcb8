"""All that is known of sd-scripts and accelerate; it takes and gives plain values."""
