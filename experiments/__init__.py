"""One folder per question: the command, the result, the figure, what we conclude."""
