"""Turns increments into the next initialization: rules, ledgers, the Leap learner and its meta-step. Nothing here knows
of games."""
