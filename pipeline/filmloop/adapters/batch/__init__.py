"""What the launchers of batch systems share; a `Dialect` says in which words one of them is spoken to."""
