"""Run directories: all that touches them, and what is shown of a run while it trains."""
