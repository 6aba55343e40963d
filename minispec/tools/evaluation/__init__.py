"""Methods by name, measured side by side."""
