"""Competition mathematics, judged by what follows "Answer:", normalised."""
