"""What every mover has in common: a journal of requests and outcomes, a thread for each move, files put in their places."""
