"""Local objectives: one file each, a pure loss and a thin module around it."""
