"""Controllers of a policy's entropy, one a file; `fluxentropy.rl.control` opens them by name."""
