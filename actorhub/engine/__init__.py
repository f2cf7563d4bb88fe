"""Ownership, delivery, mailboxes and activations: what the project exists for."""
