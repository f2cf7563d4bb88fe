"""What the package ships for the tests of its users."""
