"""The same arithmetic as ``minispec``, faster: compiled steps and kernels will live here, each
checked against the reference, which stays their oracle."""
