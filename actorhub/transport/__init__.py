"""How envelopes travel between processes: one long-lived, coalescing, bidirectional stream per pair of peers."""
