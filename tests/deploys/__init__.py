"""Deploys: runners of two releases of the library and of a program share a cluster, and take each other's place."""
