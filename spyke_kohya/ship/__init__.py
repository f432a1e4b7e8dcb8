"""Choose a checkpoint and put it where it is used."""
