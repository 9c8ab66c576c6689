"""A small shop: orders and stock, kept in key-value buckets of the fabric."""

from shop.api import app

__all__ = ["app"]
