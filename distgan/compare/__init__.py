"""`launch.py compare`: attention kinds under one budget, and what the result supports."""
