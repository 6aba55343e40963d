"""How a draft learns while it serves."""
