"""What somebody else adds to transfer-search."""
