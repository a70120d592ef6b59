"""For the tests of plugins: what a kind of plugin must keep, and fakes of everything else.

- `contracts`: a suite to subclass for each kind: env, engine, trainer, algorithm, observer.
- `scripted`: fakes that run the whole stack without torch or a model.
- `byte_tokenizer`: a token per byte.
- `groups`: judged trajectories, for algorithms.
- `samples`: rows to train on, for trainers.
- `distributions`: installed packages made in a folder.
- `clock`: an event loop in which waiting takes no time.
- `ranks`: processes that are the ranks of one job, for trainers that are sharded.
"""
