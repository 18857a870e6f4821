"""
The built page, as a browser loads it: `index.html`, and below `assets/` files with a hash of their content in the name.

`make ui` makes them of `ui/`; they are in the wheel and the sdist, and not in the repository. There is no code here:
`http/page.py` serves the files. `licenses.txt` has the licences of the packages whose code is in them.
"""
