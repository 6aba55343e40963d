"""Which ids the draft may propose: one file for each rule (see ``types.Shortlist``)."""
