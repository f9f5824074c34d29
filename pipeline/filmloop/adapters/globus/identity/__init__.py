"""Who the site is at Globus: applications and persons, tokens, and logins."""
