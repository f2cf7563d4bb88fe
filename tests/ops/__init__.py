"""The services on a runner's port."""
