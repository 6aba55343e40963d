"""All planted defects, in the order of their properties."""

from helpers.exactness import (
    output_defects,
    shaping_defects,
    shortlist_defects,
    tree_defects,
    verifier_defects,
)
from helpers.exactness.planting import PLANTED

# Their import registers defects.
MODULES = (verifier_defects, shortlist_defects, output_defects, shaping_defects, tree_defects)
DEFECTS = sorted(PLANTED, key=lambda defect: defect.property)
