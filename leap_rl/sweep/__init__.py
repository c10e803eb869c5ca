"""Trains a grid of runs, each an ordinary run directory below one folder (``leap-rl sweep``)."""
