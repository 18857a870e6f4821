"""The HTTP surface: translates between requests and services, and decides nothing."""
