"""Mutants that change nothing that anybody can observe, each with its reason.

Knows nothing of how mutants are made or run.
"""

from helpers.exactness.mutations import Mutant

# From (file, part of the description of the change) to the reason.
REASONS: dict[tuple[str, str], str] = {
    ("minispec/models/lm_head", "ids.to(self.weight.device) -> ids"): (
        "PyTorch itself takes indices on the CPU for rows on any device"
    ),
    ("minispec/models/lm_head", "self.weight if False else self.weight[ids"): (
        "a copy of all rows has the same values as the rows: only memory differs"
    ),
}


def find_reason(mutant: Mutant) -> str | None:
    """Why a mutant is equivalent, None if it is not known to be."""
    for (file, change), reason in REASONS.items():
        if file == mutant.file and change in mutant.change:
            return reason
    return None
