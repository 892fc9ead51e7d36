"""Options: dataclasses <-> YAML and flags, and what a command hands back.

checks.py    what an option accepts, as its annotation says
options.py   options that several commands share
results.py   what a command hands back, and how it is called from Python
yaml.py      dataclasses <-> YAML, with errors that name the file and the nearest key; where `configs/` lies
"""

from fluxentropy.doors import door

__getattr__, __dir__ = door(
    __name__,
    {
        "Result": "results",
        "command": "results",
        "config_path": "yaml",
        "from_plain": "yaml",
        "parse_bytes": "options",
        "read_yaml": "yaml",
        "to_plain": "yaml",
        "to_yaml": "yaml",
    },
)
