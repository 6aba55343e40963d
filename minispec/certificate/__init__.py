"""Proofs by enumeration that the output follows the target distribution."""
