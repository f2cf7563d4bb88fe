"""What tests start and talk to: never imported by the package."""
