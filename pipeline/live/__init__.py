"""Live sources: watched as they run, asked about while they do."""
