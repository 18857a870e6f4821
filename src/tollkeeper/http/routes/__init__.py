"""The routes of `/tk/v1`, a module per topic. Each translates a request into a service's call and back."""
