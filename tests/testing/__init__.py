"""What users' tests, and the tests of other implementations, are given."""
