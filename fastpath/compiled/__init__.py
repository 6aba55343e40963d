"""Passes of fixed shape through torch.compile."""
