"""Weights made by hand that run through the laboratory's own engine: proofs by construction, checked by enumeration."""
