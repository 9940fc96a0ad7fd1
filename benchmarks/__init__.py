"""Benchmarks; a package, or that of the same name which Opacus installs would be found instead."""
