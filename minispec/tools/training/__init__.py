"""Training the draft, the router and the pocket pair."""
