"""Transfers between accounts while runners are killed, and not a cent lost, found or booked twice."""
