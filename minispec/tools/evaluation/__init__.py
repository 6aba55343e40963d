"""Methods by name, measured side by side on the same prompts."""
