"""`fluxentropy grpo-study`: probed runs in, what moves the entropy out.

study.py    which runs, and the command
answers.py  how good predictions of steps are, which parts a change has, which tokens and prompts carry it
text.py     in words; figures.py: in pictures
"""

from fluxentropy.doors import door

__getattr__, __dir__ = door(
    __name__,
    {
        "ProbedRun": "study",
        "find_probed": "study",
    },
)
