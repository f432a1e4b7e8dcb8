"""Keep what is known of a run: its directory, its record, who holds it."""
