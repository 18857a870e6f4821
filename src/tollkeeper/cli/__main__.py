"""`python -m tollkeeper.cli`, for where the script is not on the path."""

from tollkeeper.cli import main

main()
