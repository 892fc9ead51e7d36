"""Questions answered by a model, and whether its uncertainty predicts which answers are right.

questions.py    records -> multiple-choice questions, by the tasks in `configs/questions/`
answering.py    questions -> log-likelihoods of endings, and entropies
hellaswag.py    `fluxentropy hellaswag`: a row a question
table.py        a table of items -> metrics and a target
logistic.py     logistic regression, by statsmodels
statistics.py   effects, associations, power, AUC, calibration
diagnostics.py  all that is fitted and tested, in one object
diagnose.py     `fluxentropy diagnose`, and what it found in words
figures.py      its pictures
options.py      options of both commands
"""

from fluxentropy.doors import door

__getattr__, __dir__ = door(
    __name__,
    {
        "Diagnostics": "diagnostics",
        "Question": "questions",
        "diagnose_table": "diagnostics",
        "fit_logit": "logistic",
        "open_questions": "questions",
    },
)
