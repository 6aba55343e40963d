"""Files: written to a temporary name and renamed, checked when read."""
