"""Commands: parse, delegate, print."""
