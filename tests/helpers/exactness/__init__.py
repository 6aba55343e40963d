"""Parts, checks and planted defects that the exactness tests and scripts share."""
