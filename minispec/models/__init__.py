"""The target and the draft: plain PyTorch modules."""
