"""report - what a person sees: tables, the live line, and what the journals add up to.

ends one line of a journal · series (pure) throughput, use, waiting · picture · tables · live
"""
