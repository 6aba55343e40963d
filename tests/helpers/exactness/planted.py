"""All planted defects, in the order of their properties."""

from helpers.exactness import output_defects, shortlist_defects, verifier_defects
from helpers.exactness.planting import PLANTED

MODULES = (verifier_defects, shortlist_defects, output_defects)  # their import registers defects
DEFECTS = sorted(PLANTED, key=lambda defect: defect.property)
