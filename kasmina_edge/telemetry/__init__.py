"""What a device sees, kept on disk until the controller has it: collector, outbox, publisher, capture."""
