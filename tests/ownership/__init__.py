"""Which runner owns a shard: leases, plans and placement, in virtual and in real time."""
