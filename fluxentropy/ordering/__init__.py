"""A scored corpus -> sorted, or cut into bins of Arrow shards at exact edges.

inputs.py       what is read: runs, Parquet files, other tables
expressions.py  arithmetic over columns, and the columns that come of it
sort.py         `fluxentropy sort`
quantiles.py    a score column -> numbers, exact sums, exact quantiles in bounded memory
edges.py        edges, and the bin of each value
within.py       edges inside each value of a column, such as each source
split.py        scored files -> pieces -> bins
shards.py       Arrow files of a target size, and the hash of every row
blocks.py       texts of bins -> blocks of tokens to train on
bin.py          `fluxentropy bin`
bins.py         `bins.json` and the bins of a folder: `Bins`
check.py        every row in exactly one bin, undamaged
options.py      options of `sort` and `bin`
"""

from fluxentropy.doors import door

__getattr__, __dir__ = door(
    __name__,
    {
        "BinEdges": "edges",
        "Binning": "edges",
        "Bins": "bins",
        "Expression": "expressions",
    },
)
