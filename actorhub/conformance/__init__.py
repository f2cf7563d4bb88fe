"""The promises of the ports, as test suites that every implementation must pass."""
