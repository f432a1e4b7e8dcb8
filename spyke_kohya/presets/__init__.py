"""What was asked: dataset and training presets as typed, validated values."""
