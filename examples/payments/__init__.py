"""Transfers between accounts while runners are killed, and no cent is lost, made or booked twice."""
