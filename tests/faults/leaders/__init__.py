"""A singleton under faults: its leaders, who kills them, and the judge of what they left."""
