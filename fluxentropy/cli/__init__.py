"""The command line: names of commands -> functions, and nothing else about them.

commands.py  the table of commands
app.py       flags and YAML -> options -> a command; what is printed, exit codes, signals
demo.py      `fluxentropy demo`; passages.py: its text
"""

from fluxentropy.doors import door

__getattr__, __dir__ = door(
    __name__,
    {
        "COMMANDS": "commands",
        "Command": "commands",
        "build_app": "app",
        "main": "app",
    },
)
