"""Replicas: processes that answer busy connections with copies of small engines, beside the service's own process.

Python runs one thread at a time, so a network that takes microseconds is held up by the work around it, on one
processor. A connection that keeps that processor busy is handed to a replica, socket and all; what a replica cannot
answer at once it hands back, byte for byte. See docs/decisions/0009-replicas.md.
"""
