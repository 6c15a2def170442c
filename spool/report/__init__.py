"""report - tables and the live line: what a person sees."""
