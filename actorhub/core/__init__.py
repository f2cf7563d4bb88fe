"""Values only: addresses, envelopes, errors, settings. No I/O lives here."""
