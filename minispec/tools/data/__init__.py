"""Text, prompts, rankings and target-written training data."""
