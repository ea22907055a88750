"""Models of transformers, loaded unmodified; transformers is imported here and nowhere lower."""
