"""Tests about the project itself: what linters cannot say."""
