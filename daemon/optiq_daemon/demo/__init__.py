"""``optiq demo``: the whole loop on the embedded model, in a home of its own, through the client like anyone else."""
