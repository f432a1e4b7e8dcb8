"""Tell what decides a training, and what of it has changed."""
