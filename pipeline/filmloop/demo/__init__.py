"""The story of the loop in a few minutes: drift, retrain, a worse challenger refused, a rollback."""
