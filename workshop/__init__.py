"""What is done with the method: models are fetched, drafts trained, methods compared and shown."""
