"""Trying stages out before they cost anything: a few steps, what they took, what all would take."""
