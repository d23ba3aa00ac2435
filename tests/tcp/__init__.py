"""Server and client: the wire, access, losses, groups.

A client runs the lines of a file as a runner does; whoever dies, is cut off or attacks, no job is lost.
"""
