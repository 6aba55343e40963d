"""The target and the draft as plain PyTorch modules, and what they are made of."""
