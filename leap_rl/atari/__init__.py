"""Offers Atari games through the Arcade Learning Environment: which there are, and many of them played at once."""
