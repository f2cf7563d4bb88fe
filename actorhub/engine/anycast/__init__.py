"""Requests that belong to no entity: any runner answers them."""
