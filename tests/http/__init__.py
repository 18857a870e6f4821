"""The HTTP surface, driven in process against real stores."""
