"""Requests that belong to no entity, so that any runner can answer them."""
