"""How far models agree on texts, and the order that they have in common.

    matrix.py      runs, or a wide table -> the scores of all models, side by side
    statistics.py  rank correlations, distances, PCA, with intervals; the consensus
    figures.py     the pictures
    agree.py       `fluxentropy agree`, and `fluxentropy zoo`, which scores first
    options.py     options of both

`fluxentropy.agreement(matrix)` measures the agreement of a matrix of scores.
"""

from fluxentropy.doors import door

__getattr__, __dir__ = door(
    __name__,
    {
        "Agreement": "statistics",
        "ScoreMatrix": "matrix",
        "read_runs": "matrix",
        "read_wide_table": "matrix",
    },
    call="statistics:agreement",
)
