"""What runs on the board: session and download machines, the agent, the trainer process."""
