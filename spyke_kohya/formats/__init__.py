"""Read other people's file formats; nothing here knows sd-scripts."""
