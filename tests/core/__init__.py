"""Values: settings and ids."""
