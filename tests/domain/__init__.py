"""Properties of the pure core. Examples have no deadline: how fast a machine is says nothing about them."""

from hypothesis import settings

settings.register_profile("untimed", deadline=None)
settings.load_profile("untimed")
