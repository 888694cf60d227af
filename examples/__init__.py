"""Programs that use emanest."""
