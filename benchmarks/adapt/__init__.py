"""Adapting the exit to pictures that were never trained on: corruptions, streams, figures."""
