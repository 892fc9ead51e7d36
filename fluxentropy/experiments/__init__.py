"""Many runs, judged: schedules, controllers, and studies of probed runs.

options.py      options of the three commands
arms.py         what is compared, and its controls
cells.py        one run of an arm, and how a comparison is run
statistics.py   paired differences, intervals, what could have been seen
judging.py      records of runs -> numbers and verdicts
text.py         in words; figures.py: in pictures
schedules.py    `fluxentropy compare`
controllers.py  `fluxentropy grpo-compare`
study/          `fluxentropy grpo-study`
"""

from fluxentropy.doors import door

__getattr__, __dir__ = door(
    __name__,
    {
        "Arm": "arms",
        "Paired": "statistics",
        "paired": "statistics",
    },
)
