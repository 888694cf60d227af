"""The lab: does looking ahead help, when, and by how much."""
