"""TinyStories from raw text to a model (not built yet)."""
