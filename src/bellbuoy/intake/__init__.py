"""A notification comes in: validated, identified, put into its homes, and only then answered."""
