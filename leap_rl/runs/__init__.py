"""Keeps run directories, and shows a run while it trains."""
