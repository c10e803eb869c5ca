"""Does an initialization help? Training from it beside training from a random one, on games it has not seen.

plan → tasks (arm × game × seed) → the same backends as meta-training → results → report
"""
