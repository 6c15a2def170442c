"""launcher - takes tasks and runs them.

entry which kind · allocation (claims, hosts) where am I · field its nodes · starting of ranks
loop the turns · picker what is claimed · gate tags, limits · book, nodes (pure) room · places
crew one node's tasks · run, spawner, mpirun one task's start · stopping, ending, children its end
ranks, rank, orders, post over many nodes · hands on one · batch, chore, guard beside it
clock, simulate virtual time · survey what doctor tells of all this
"""
