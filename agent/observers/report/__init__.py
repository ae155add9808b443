"""The report of a night: what is to be shown (data.py), and the page that shows it (page.py).

`payload` is plain JSON, made from the ledger alone; the page, the picture and the text for a pull request are made
from it and know nothing else of a night.
"""
