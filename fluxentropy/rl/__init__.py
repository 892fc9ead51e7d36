"""How a policy's entropy changes while it is trained by reinforcement learning; see `fluxentropy.rl.entropy`."""
