"""`python -m fluxentropy` is the same as `fluxentropy`."""

from fluxentropy.cli.app import main

if __name__ == "__main__":
    raise SystemExit(main())
