"""Files: whole or not at all, cached, remote, claimed."""
