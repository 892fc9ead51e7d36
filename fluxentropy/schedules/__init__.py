"""What is drawn when: a schedule by name, over a budget, as the blocks of every batch.

options.py    `schedule:` in a configuration, and the budget
schedule.py   names -> schedules; controls, custom and adaptive mixtures
orders.py     schedules that are permutations of an epoch
mixtures.py   schedules that weight the bins: pools, windows, waves, stages, tilts
strata.py     which blocks are drawn: a share by score, and each value of a column apart
plan.py       a schedule over a budget -> exact counts of each bin in each batch
sampler.py    a step -> the blocks of its batch
dataset.py    blocks of tokens, mapped from disk
order.py      `fluxentropy order`: a schedule as a data set for other trainers
drawn.py      which unit an order has at each position
texts.py      the texts of bins in any order, in bounded memory
formats/      what `order` writes
check.py      what `verify` says of an order
show.py       `fluxentropy schedule`: the plan as a table and a picture
"""

from fluxentropy.doors import door

__getattr__, __dir__ = door(
    __name__,
    {
        "BlockSet": "dataset",
        "Plan": "plan",
        "Sampler": "sampler",
        "ScheduleConfig": "options",
        "make": "schedule",
        "make_plan": "plan",
        "make_schedule": "schedule",
    },
)
