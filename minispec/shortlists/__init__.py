"""Which ids the draft may propose, one method per file (see ``types.Shortlist``)."""
