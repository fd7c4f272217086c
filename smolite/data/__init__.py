"""From files of people to rows of token ids: sources, dialogues, pairs, templates, packing."""
