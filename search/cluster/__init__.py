"""A Ray cluster from outside: jobs, and a node's health."""
