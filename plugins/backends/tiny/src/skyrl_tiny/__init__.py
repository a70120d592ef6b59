"""The built-in tiny model `builtin:tiny`, and the demo that trains it.

A Llama of some 430,000 parameters that multiplies three digits by one, on paper
and not well. It is made on this machine on first use, by supervised
fine-tuning through the same loop, trainer and tokenizer as any model, from text
that this package generates.

What it knows at the start and what it does not is the work of its teacher
(`skyrl_tiny.teacher`): the procedure is right, part of the times table is wrong.
Reinforcement learning against a verifier can find the right facts; imitating
the teacher longer cannot.
"""
