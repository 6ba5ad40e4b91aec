"""`python -m search` is `transfer-search`."""

from search.cli.main import entry

entry()
