"""Every test of this folder starts with its gates closed."""

from tests.support.gates import closed_gates

__all__ = ["closed_gates"]
