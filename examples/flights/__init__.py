"""A year of departures from New York, pushed through a cluster that loses a runner, and checked against pandas."""
