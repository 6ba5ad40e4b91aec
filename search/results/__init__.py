"""What is read from a search: rows, report, export, doctor."""
