"""Empirical privacy: attacks that bound a leak from below, beside what accountants promise from above."""
