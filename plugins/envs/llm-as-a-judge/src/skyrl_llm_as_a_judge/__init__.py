"""Answers judged by another language model, behind any OpenAI-compatible URL."""
