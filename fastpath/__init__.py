"""The same arithmetic as ``minispec``, faster: compiled steps and kernels, each checked against the
reference, which stays their oracle."""
