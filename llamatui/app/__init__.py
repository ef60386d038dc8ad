"""Everything a person touches: command line, terminal app, generation engine."""
