"""SOURCE strings -> records with stable ids, in the columns of the source.

sources.py    names, globs, folders and Hub data sets -> files in a stable order
readers.py    one reader a format: schema, number of rows, rows from any one on
textfiles.py  JSON Lines, CSV and plain text, with what is wrong in each line
scan.py       the first pass over a text file: rows, bad rows, types
layout.py     the columns: names and types over all files
corpus.py     all of it: batches of records
"""

from fluxentropy.doors import door

__getattr__, __dir__ = door(
    __name__,
    {
        "Corpus": "corpus",
        "find_sources": "sources",
        "open_corpus": "corpus",
    },
)
