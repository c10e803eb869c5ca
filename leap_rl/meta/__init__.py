"""The Leap learner: increments in, the next initialization out. It needs no games."""
