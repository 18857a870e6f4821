"""The stores behind the ports. The only place where their drivers are imported."""
