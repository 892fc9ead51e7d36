"""Formats of an order: what `fluxentropy order` writes for other trainers, and how `verify` reads it back.

format.py       what a format is told and has to do
catalogue.py    names -> formats
tables.py       jsonl, parquet, arrow: a row a text
mds.py          shards of mosaicml-streaming, and their index.json
webdataset.py   tar archives, two members a text
nanogpt.py      the .bin files of modded-nanogpt and llm.c: a stream of tokens
megatron.py     Megatron's .bin and .idx: a document a block
"""

from fluxentropy.doors import door

__getattr__, __dir__ = door(__name__, {"FORMATS": "catalogue", "find_format": "catalogue"})
