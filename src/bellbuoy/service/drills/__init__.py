"""Drills: a stack of its own, a load, a fault, and what the checker says; `bellbuoy.continuity.drill` has the rules.

Everything here drives other processes from outside, over HTTP, signals and sockets, so it is plain threads, and it goes
by the machine's clock, which is theirs too.
"""
