"""One suite per port, run over every adapter against the real engine."""
