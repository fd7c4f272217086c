"""The command line: parser, verbs, demo."""
