"""What is asked: prompts, hooks and targets as people write them, and the requests that they become."""
