"""MLflow: events, outbox, the sender's process, runs."""
