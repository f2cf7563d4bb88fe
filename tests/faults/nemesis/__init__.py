"""Every workload on one cluster, under one stream of faults of every kind, judged by every judge."""
