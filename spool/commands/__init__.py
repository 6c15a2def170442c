"""commands - one file per family of commands: each parses, calls the core once, and prints.

submit · seeing (ls status show history log path wait) · verbs (cancel hold release retry modify rm)
launcher · report · admin (init app check doctor schema) · shared (the options they have in common)
"""
