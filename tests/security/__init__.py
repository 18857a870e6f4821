"""What a stranger, or one customer beside another, may not do, see or cost."""
