"""Online learning: a draft that adapts between rounds, while it serves."""
