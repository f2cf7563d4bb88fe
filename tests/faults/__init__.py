"""The whole system under faults: real processes, real Postgres, real links."""
