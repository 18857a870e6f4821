"""
The demonstration: one run that sets up a provider with two customers, sends its gate real traffic over HTTP,
some of it refused, and shows what happened. `tollkeeper demo` runs it; nothing else depends on it.
"""
