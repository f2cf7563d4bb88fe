"""A year of departures from New York, sent through a cluster that loses a runner, and checked against pandas."""
