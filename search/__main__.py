"""`python -m search` is `transfer-search`."""

from search.cli import entry

entry()
