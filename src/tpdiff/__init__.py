"""tpdiff."""
