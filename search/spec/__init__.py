"""A spec: YAML with positions in, a checked SearchSpec out."""
