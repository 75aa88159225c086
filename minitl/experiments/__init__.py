"""What the paper did: its models and tables, and its experiments at a size for two cores."""
