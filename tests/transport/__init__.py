"""Links between processes, in memory and over gRPC."""
