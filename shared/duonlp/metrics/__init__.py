"""What a written text is worth against references: ROUGE, BLEU, their intervals, and systems compared with one another."""
