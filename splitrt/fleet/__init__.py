"""Many servers of one model, placed by Ray Serve (needs the extra ray).

Nothing is imported here: Ray's own processes import `ingress` and `scale`, and are to stay small.
"""
