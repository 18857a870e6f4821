"""
The proof by attack: client processes against a real server that is killed again and again, and an oracle that
counts for itself what must be there. `tollkeeper prove` runs it; nothing else depends on it.
"""
