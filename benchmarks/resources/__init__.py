"""What an attack costs a server: its memory, its time, and the time of those who did nothing.

``python -m benchmarks.resources`` runs it; ``docs/security/resources.md`` is what came out.
"""
