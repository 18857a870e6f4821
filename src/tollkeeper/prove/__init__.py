"""
The proof by attack: client processes against a real server that is killed again and again, and an oracle that
computes the expected counts on its own. `tollkeeper prove` runs it; nothing else depends on it.
"""
