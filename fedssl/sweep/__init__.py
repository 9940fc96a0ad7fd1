"""Many runs of one grid, and the report that compares them."""
