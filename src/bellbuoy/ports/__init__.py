"""What the flows need from the outside, as Protocols in the domain's own verbs; adapters implement them."""
