"""Words, documents, errors and durable files that every part shares. No torch and no vendor in here."""
