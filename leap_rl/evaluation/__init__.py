"""Evaluates initializations: trains from them, and from a random one, on games that meta-training has not seen.

plan → tasks (arm × game × seed) → the same backends as meta-training → results → report
"""
