"""The use cases: read, ask the domain, write in one transaction, emit. One file each."""
