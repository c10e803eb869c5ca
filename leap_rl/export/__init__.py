"""Exports an initialization to other libraries."""
