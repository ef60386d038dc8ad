"""Every conversation and story in one SQLite file: saved as they grow, listed, searched, opened again."""
