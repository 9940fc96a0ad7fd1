"""What a run leaves behind: records, tables, plots and the report."""
