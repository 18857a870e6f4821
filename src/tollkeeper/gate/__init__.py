"""Admission in memory: the domain's rules over the allotments that this node holds."""
