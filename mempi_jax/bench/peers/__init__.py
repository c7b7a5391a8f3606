"""Other libraries doing the same work. Every NAME_peer.py runs as a script in its library's own Python; none imports anything of mempi_jax.

install.sh makes those Pythons; turns.py starts the scripts and talks to them.
"""
