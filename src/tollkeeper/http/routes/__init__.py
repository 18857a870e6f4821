"""The routes of `/tk/v1`, a module per topic. Each translates a request into a call of a room and back."""
