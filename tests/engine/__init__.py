"""Tests of ownership, delivery, mailboxes and activations."""
