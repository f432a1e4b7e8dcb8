"""Write presets for a person who has none yet."""
