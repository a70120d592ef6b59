"""LiveCodeBench: programs judged by their tests, in the sandbox."""
